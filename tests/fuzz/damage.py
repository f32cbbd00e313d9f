"""Damage done at random, and what has to come of it: the right result, or one sentence."""

from gsas_lab.errors import InputError


def in_bytes(random, data):
    """A file's bytes changed: a flipped bit, cut short, emptied, lengthened, or noise."""
    data = bytearray(data)
    kind = random.randrange(6)
    if kind < 2 and data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == 2:
        data = data[: random.randrange(len(data) + 1)]
    elif kind == 3:
        data = bytearray()
    elif kind == 4:
        data += random.randbytes(random.randrange(1, 60))
    else:
        data = bytearray(random.randbytes(random.randrange(1, 200)))
    return bytes(data)


def tried(call):
    """What it gives, or none where it is told in a sentence that it does not go."""
    try:
        return call()
    except InputError as error:
        assert len(str(error)) <= 300 and str(error).isprintable()
        return None
