"""Exercises that answer back: one module a notebook, one check an exercise.

    from gsas_lab.lessons.exercises import calibration as check
    check.brier_parts((0.06, 0.04, 0.24))  # a Verdict: "Right. …", or "Not yet." with a hint

The tasks are set in `notebooks/solutions`, from which `notebooks.write` makes
`notebooks/exercises`: only the answers are missing. A new exercise is a check here (its truth, the
typical wrong answers and their hints: `answers`), three cells there, and a wrong answer in
tests/test_exercises.py.
"""
