"""Claims about the command line as a whole; what each command does is tested with its module."""

import argparse

import pytest

from gsas_lab import __main__ as command_line


def parser_of(command):
    (commands,) = command_line._parser()._subparsers._group_actions
    return commands.choices[command]


def given(action):
    """An option with a value that it takes."""
    if action.nargs == 0:
        return [action.option_strings[-1]]
    for value in action.choices or ("1", "true"):
        try:
            (action.type or str)(value)
        except (ValueError, argparse.ArgumentTypeError):
            continue
        return [action.option_strings[-1], str(value)]
    raise AssertionError(f"no value for {action.dest}")


@pytest.mark.parametrize("command", command_line._parser()._subparsers._group_actions[0].choices)
def test_the_words_of_a_command_may_stand_anywhere_among_its_options(command):
    options, words = [], []
    for action in parser_of(command)._actions:
        if action.option_strings and action.dest != "help":
            options.append(given(action))
        elif not action.option_strings:
            words += [f"{action.dest} {n}" for n in range(3 if action.nargs == "*" else 1)]
    flat = sum(options, [])
    parse = command_line._parser().parse_args
    first = parse([command, *words, *flat])
    assert parse([command, *flat, *words]) == first
    for place in range(len(words)):
        for option in options:
            rest = sum((other for other in options if other is not option), [])
            mixed = [*words[:place], *option, *words[place:]]
            assert parse([command, *mixed, *rest]) == first, (command, mixed)
            assert parse([command, *rest, *mixed]) == first, (command, mixed)
    if command == "recommend":
        assert (first.run, first.items) == ("run 0", ["items 0", "items 1", "items 2"])
        assert parse([command, "RUN", "--n", "5", "--", "-1 °C"]).items == ["-1 °C"]


def test_help_and_a_wrong_word_are_answered_as_before(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["recommend", "--help"])
    said = capsys.readouterr().out
    assert "usage: python -m gsas_lab recommend [-h] [--n N]" in said and "[items ...]" in said
    for words, told in (
        (["recommend"], "the following arguments are required: run"),
        (["recommend", "RUN", "--m", "3", "55"], "unrecognized arguments: --m"),
        (["recommend", "RUN", "55", "--n", "x"], "argument --n: invalid int value: 'x'"),
    ):
        assert command_line.main(words) == 2
        assert told in capsys.readouterr().err
