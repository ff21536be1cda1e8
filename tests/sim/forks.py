"""Every history of a program whose questions the device may answer either way.

A clean trace is right for every timing, but a program that asks "is it done?" takes
another path after "yes" than after "no". Those answers are all that is left to choose,
so a small program is run once for each sequence of them, depth first.
"""

import ctypes

LIMIT = 12  # questions of a run whose answers are chosen; later ones get the mode's


def histories(run, limit=LIMIT):
    """Calls `run(answers)` for each sequence of answers, all "no" first.

    Args:
        run: makes a new Machine, calls `answer(m, answers)`, plays the program and
            returns the Machine. A question whose answer is certain is no fork.
        limit: forks of a run at most.

    Yields:
        (answers, m, whole): what was answered, after which run; whole: the run asked no
        more than `limit`.
    """
    answers = []
    while answers is not None:
        chosen = answers + [0] * (limit - len(answers))
        m = run(chosen)
        asked = m.lib.sim_asked()
        taken = chosen[: min(asked, limit)]
        yield taken, m, asked <= limit
        answers = following(taken)


def following(taken):
    """The next sequence in depth-first order; None after the last.

    >>> following([0, 0]), following([0, 1]), following([1, 1])
    ([0, 1], [1], None)
    """
    while taken and taken[-1] == 1:
        taken = taken[:-1]
    return [*taken[:-1], 1] if taken else None


def answer(m, answers):
    """The machine gives these answers to the questions it is asked from now on."""
    m.lib.sim_script(bytes(answers), ctypes.c_int64(len(answers)))
