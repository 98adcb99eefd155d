"""A fixed number of fuzzing's cases; `python tests/fuzz/fuzz.py --seconds 3600` runs as many as one likes."""

import fuzz
import pytest

CASES = {"studies": 150, "records": 60, "notebooks": 100, "folders": 400, "images": 600}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_what_is_mutated_is_read_or_refused_in_a_sentence(target, tmp_path, monkeypatch):
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    for case in range(CASES[target]):
        assert not fuzz.run_case(target, 0, case, tmp_path), f"--only {target} --case {case}"


@pytest.mark.parametrize("error", [RecursionError(), SystemExit(0), TypeError("x")])
def test_what_is_neither_is_a_fault(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setitem(fuzz.TARGETS, "images", fail)
    assert fuzz.run_case("images", 0, 0, tmp_path)
