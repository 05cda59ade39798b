"""Verdicts of math_verify from processes that may hang, crash or be killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scope_jax.tasks import worker_pool
from scope_jax.tasks.rules.boxes import answer_in_boxes, final_boxes
from scope_jax.tasks.verify_math import MathVerifier, verify_math

module = sys.modules[MathVerifier.__module__]  # the room exports a function of the module's name
WORKER = Path(worker_pool.__file__).with_name("math_worker.py")


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(workers=2, seconds=20.0) as pool:
        yield pool


CASES = [
    # prediction, gold, verdict
    (r"so \boxed{\frac{1}{2}}", "0.5", True),
    (r"so \boxed{0.5}", r"\frac{1}{2}", True),
    (r"\boxed{3}", "4", False),
    ("The answer is 7.", "7", True),
    ("no number here", "7", False),
    ("", "7", False),
    (r"\boxed{}", "7", False),
    (r"first \boxed{7}, no: \boxed{8}. That is 7 more than 1.", "8", True),  # the last box counts
    (r"first \boxed{7}, no: \boxed{8}. That is 7 more than 1.", "7", False),
    (r"\boxed{8} and then \boxed{7", "8", True),  # a box that never closes is not an answer
    (r"\boxed{\text{so }\boxed{\sqrt{8}}}", r"$2\sqrt{2}$", True),
    (r"either \boxed{3} or \boxed{4}", "3", False),  # two guesses are not one answer
    (r"\boxed{1} and \boxed{2}", r"\{1, 2\}", True),
    (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", True),
    (r"\boxed{x = 5}", "5", True),  # the order matters: see the next
    (r"\boxed{5}", "2x = 10", False),
    (r"\boxed{1,234}", "1234", True),
    (r"\boxed{(B)}", r"\text{B}", True),
    (r"\fbox{6}", r"Therefore $\boxed{6}$.", True),
    ("x" * 200_000 + r" \boxed{5}", "5", True),
    (r"\boxed{5} " + "x" * 200_000, "5", False),  # only the end of a long text is read
    ("\ud800 lone \udfff " + r"\boxed{5" + "\ud800}", "5", True),
    ("\0" * 100 + r"\boxed{5}", "5", True),
    ("((((" * 2000, "1", False),
    (r"\boxed{" * 2000, "1", False),
    (r"\boxed{__import__('os').system('exit 1')}", "1", False),
    (r"\boxed{import sys; sys.exit()}", "1", False),
    (r"\boxed{some number, say 1}", "1", False),  # nothing is picked out of a box
    (r"\boxed{exit()}", r"\text{exit()}", True),  # the same but for typesetting, and not run
    (r"\boxed{exit(1)}", r"\text{exit()}", False),
    (r"\boxed{5}", "", None),
    (r"\boxed{5}", r"\frac{", None),
    (r"\boxed{?!}", "?!", True),  # unreadable, and the same letter by letter
    (r"\boxed{5}", "1" * 20_000, None),  # a gold beyond the limit
]


@pytest.mark.parametrize("start", range(0, len(CASES), 8))
def test_literal_cases(verifier, start):
    cases = CASES[start : start + 8]
    got = verifier.verify([p for p, _, _ in cases], [g for _, g, _ in cases])
    assert [(p[-60:], g[:60], v) for (p, g, _), v in zip(cases, got)] == [
        (p[-60:], g[:60], v) for p, g, v in cases
    ]
    assert all(v is None or isinstance(v, bool) for v in got)


def test_public_function_and_empty_input():
    assert verify_math([], []) == []
    assert verify_math([r"\boxed{\frac12}", r"\boxed{2}"], ["0.5", "3"], seconds=20) == [
        True,
        False,
    ]
    first = module._shared_verifier()
    assert (
        verify_math((r"\boxed{1}",), ("1",), seconds=20) == [True]
        and module._shared_verifier() is first
    )


def test_an_item_that_never_ends_is_none_and_the_others_go_on(verifier):
    predictions = [
        r"\boxed{9^{9^{9^9}}}",
        r"\boxed{1}",
        r"$" + "(" * 4000 + "1" + ")" * 4000 + "$",
        r"\boxed{2}",
    ]
    before = verifier.counts["timeout"]
    start = time.monotonic()
    assert verifier.verify(predictions, ["12", "1", "1", "1"], seconds=1.0) == [
        None,
        True,
        None,
        False,
    ]
    assert time.monotonic() - start < 15  # two items of a second; the rest is for a busy machine
    assert verifier.counts["timeout"] == before + 2


def test_a_worker_that_does_not_react_is_killed_and_replaced():
    with MathVerifier(workers=1, seconds=20.0) as pool:
        assert pool.verify([r"\boxed{1}"], ["1"]) == [True]
        stuck = pool._pool[0].process
        os.kill(stuck.pid, signal.SIGSTOP)  # neither the alarm nor SIGTERM reach a stopped process
        assert pool.verify([r"\boxed{1}"], ["1"], seconds=1.0) == [None]
        assert stuck.returncode == -signal.SIGKILL and pool.counts["timeout"] == 1
        assert pool.verify([r"\boxed{1}"], ["1"]) == [True]
        assert pool._pool[0].process.pid != stuck.pid


def test_a_worker_that_dies_at_work_costs_its_item_only():
    with MathVerifier(workers=1, seconds=20.0, items_per_worker=2) as pool:
        assert pool.verify([r"\boxed{1}"], ["1"]) == [True]
        process = pool._pool[0].process
        os.kill(process.pid, signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL))
        killer.start()
        assert pool.verify([r"\boxed{1}", r"\boxed{2}"], ["1", "2"]) == [None, True]
        killer.join()
        assert pool.counts == {"judged": 2, "crash": 1}

        # Dead while idle: noticed, and nothing is lost. Two items served: the next worker is a new
        # one.
        os.kill(pool._pool[0].process.pid, signal.SIGKILL)
        pool._pool[0].process.wait()
        assert pool.verify([r"\boxed{1}", r"\boxed{3}"], ["1", "2"]) == [True, False]
        assert pool._pool == []


def test_closing_ends_the_processes():
    pool = MathVerifier(workers=1, seconds=20.0)
    assert pool.verify([r"\boxed{1}"], ["1"]) == [True]
    process = pool._pool[0].process
    assert (
        os.getsid(process.pid) == process.pid != os.getsid(0)
    )  # Ctrl-C in the terminal does not reach it
    pool.close()
    pool.close()
    assert process.returncode is not None
    with pytest.raises(ValueError, match="after close"):
        pool.verify([r"\boxed{1}"], ["1"])


def test_workers_never_see_jax_or_an_accelerator(verifier):
    """Loading everything that judging needs brings in neither JAX nor this package."""
    code = (
        "import runpy, sys\n"
        f"names = runpy.run_path({str(WORKER)!r}, run_name='worker')\n"
        r"assert names['judge'](r'\boxed{\frac{2}{4}}', '0.5') == (True, '')"
        + "\nprint(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'jaxlib', 'flax',"
        " 'numpy', 'torch', 'tensorflow', 'transformers', 'scope_jax', 'sympy'}))"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "['sympy']"

    assert verifier.verify([r"\boxed{1}"], ["1"]) == [True]
    process = verifier._pool[0].process
    assert process.args[1:3] == ["-P", str(WORKER)]
    proc = Path(f"/proc/{process.pid}")
    if proc.exists():
        environment = dict(
            e.split("=", 1) for e in (proc / "environ").read_text().split("\0") if "=" in e
        )
        assert environment["JAX_PLATFORMS"] == "cpu" and environment["CUDA_VISIBLE_DEVICES"] == ""
        maps = (proc / "maps").read_text()
        assert "jaxlib" not in maps and "libtpu" not in maps and "python" in maps


def test_a_start_that_fails_is_an_error_with_its_reason(tmp_path, monkeypatch):
    broken = tmp_path / "worker.py"
    broken.write_text("import no_such_module_anywhere\n")
    monkeypatch.setattr(worker_pool, "_WORKER", broken)
    with (
        MathVerifier(workers=1) as pool,
        pytest.raises(RuntimeError, match="no_such_module_anywhere"),
    ):
        pool.verify([r"\boxed{1}"], ["1"])


def test_bad_arguments(verifier):
    with pytest.raises(ValueError, match="one length"):
        verifier.verify(["1"], ["1", "2"])
    with pytest.raises(ValueError, match="one length"):
        verifier.verify("1", "1")
    with pytest.raises(ValueError, match=r"golds\[1\] is a int"):
        verifier.verify(["1", "2"], ["1", 2])
    with pytest.raises(ValueError, match="seconds is 0"):
        verifier.verify(["1"], ["1"], seconds=0)
    with pytest.raises(ValueError, match="workers is 0"):
        MathVerifier(workers=0)


def test_threads_share_a_pool(verifier):
    results = {}

    def judge(n):
        results[n] = verifier.verify([rf"\boxed{{{n}}}"] * 5, ["0", "1", "2", "3", "4"])

    threads = [threading.Thread(target=judge, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [k == n for k in range(5)] for n in range(5)}


def test_boxes():
    assert final_boxes("no box") == [] and answer_in_boxes("no box") is None
    assert final_boxes(r"\boxed {a{b}c} }") == ["a{b}c"]
    assert final_boxes(r"\boxed{\{1,2\}}") == [r"\{1,2\}"]
    assert final_boxes(r"$\boxed{1}$, and $\boxed{2}$ or \boxed{3}") == ["1", "2", "3"]
    assert answer_in_boxes(r"$\boxed{1}$, and $\boxed{2}$ or \boxed{3}") == "1, 2, 3"
    assert final_boxes(r"\boxed{1}. Then \boxed{2}") == ["2"]
    assert final_boxes(r"} { \boxed{\boxed{4}} {") == [r"\boxed{4}"]
    assert answer_in_boxes(r"\boxed{\text{so }\boxed{4}}") == "4"
    assert final_boxes(r"\boxed{ 5 } \boxed{6") == ["5"]
    assert answer_in_boxes(r"thus $\boxed 9$.") == "9"
