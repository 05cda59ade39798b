"""Names of runs and folders of checkpoints that would be in each other's way."""

import re
import unicodedata
from pathlib import Path

import pytest

from scope_jax import sweep
from scope_jax.sweep.__main__ import main
from scope_jax.sweep.names import check_directories, check_names, check_work_folders


def test_names_that_are_apart():
    check_names(
        [
            *("a/b", "a/c", "a/b_c", "ab", "a.json.x", "x.failed/y", "y.lock", "mylocks/a"),
            *("it's a run", "rate_1e-05", "Größe/ß1", "x" * 200, "-v", ".hidden", "a*b", "a:b"),
        ]
    )


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["x", "x/y"], "the runs 'x' and 'x/y': one lies within the other"),
        (["m/x/y/z", "m/x"], "the runs 'm/x' and 'm/x/y/z': one lies within the other"),
        (["x.json/y", "x"], "the runs 'x' and 'x.json/y': one lies within the other"),
        (["x", "x.failed.json/y"], "the runs 'x' and 'x.failed.json/y': one lies within the other"),
        (["X", "x/y"], "the runs 'X' and 'x/y': one lies within the other"),
        (["x.json", "x"], "the runs 'x.json' and 'x' would share x.json"),
        (["c", "C"], "the runs 'c' and 'C' would share C"),
        (["m/seed_0", "M/seed_0"], "the runs 'm/seed_0' and 'M/seed_0' would share"),
        (["straße", "STRASSE"], "'straße' and 'STRASSE' would share"),
        (["é", unicodedata.normalize("NFD", "é")], "would share"),
        (["a/b", "a__b"], "the runs 'a/b' and 'a__b' would share locks/a__b.lock"),
        (["a/b__c", "a__b/c"], "would share locks/a__b__c.lock"),
        (["a", "b", "a"], "two runs are called 'a'"),
        (["d", "d.failed"], "'d.failed': d.failed.json is the record of the failure of 'd'"),
        (["d.failed"], "'d.failed': d.failed.json is the record of the failure of 'd'"),
        (["a/d.FAILED"], "the record of the failure of 'a/d'"),
        (["c", "./c"], "the name './c' is another spelling of 'c'"),
        (["c/"], "the name 'c/' is another spelling of 'c'"),
        (["a//b"], "the name 'a//b' is another spelling of 'a/b'"),
        (["a/./b"], "the name 'a/./b' is another spelling of 'a/b'"),
        (["locks"], "the name 'locks': the sweep keeps its own files in 'locks'"),
        (["locks/a"], "the name 'locks/a': the sweep keeps its own files"),
        (["Locks"], "the name 'Locks': the sweep keeps its own files"),
        ([".."], "the name '..' is no path inside the records' directory"),
        (["a/../b"], "the name 'a/../b' is no path inside"),
        (["/a"], "the name '/a' is no path inside"),
        (["//a"], "the name '//a' is no path inside"),
        ([""], "the name '' is no path inside"),
        (["."], "the name '.' is no path inside"),
        ([3], "the name 3 is no path inside"),
        (["a\0b"], r"the name 'a\x00b' has a character that cannot be printed"),
        (["a\nb"], r"the name 'a\nb' has a character that cannot be printed"),
        (["a\ud800"], r"the name 'a\ud800' has a character that cannot be printed"),
        (["y" * 201], "has 201 bytes; 200 are possible"),
        (["é/" * 50 + "é"], "has 202 bytes; 200 are possible"),
    ],
)
def test_names_in_each_other_s_way_are_one_line(names, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        check_names(names)
    assert "\n" not in str(caught.value)


def test_folders_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    check_directories(["cache/base", "cache/teacher", "cache/base_2", str(tmp_path / "x"), "../y"])
    (tmp_path / "link").symlink_to("cache")
    for directories, says in (
        (["a", "./a"], "two checkpoints are made in 'a' and './a'"),
        (["a", str(tmp_path / "a/")], "two checkpoints are made in 'a'"),
        (["a", "A"], "two checkpoints are made in 'a' and 'A'"),
        (["cache/a", "link/a"], "two checkpoints are made in 'cache/a' and 'link/a'"),
        (["a", "b/../a"], "two checkpoints are made in 'a' and 'b/../a'"),
        (["a/b", "a"], "the checkpoints 'a' and 'a/b': one lies within the other"),
        ([""], "the folder '' of a checkpoint: expected a path"),
        (["a\0"], r"the folder 'a\x00' of a checkpoint: expected a path"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            check_directories(directories)


def test_what_is_kept_does_not_lie_where_a_run_works(tmp_path: Path):
    names = ["records", "m/x"]
    apart = [tmp_path / "records", tmp_path / "work", tmp_path / "work/m", tmp_path / "work/m/x2"]
    check_work_folders(names, tmp_path / "work", apart)
    for kept in ("work/records", "work/records/table", "work/m/x/base", "work/m/../m/x"):
        with pytest.raises(ValueError, match=r"is deleted when that has its record"):
            check_work_folders(names, tmp_path / "work", [tmp_path / kept])


def test_the_command_line_refuses_them_before_anything_is_written(tmp_path: Path, capsys):
    path = tmp_path / "s.py"
    body = "from scope_jax.sweep import Checkpoint, Run\ndef sweep():\n    return [{}]\n"

    def said(runs: str, prepare: str = "", records: str = "records") -> str:
        more = f"def prepare():\n    return [{prepare}]\n" if prepare else ""
        path.write_text(body.format(runs) + more)
        place = [f"--workdir={tmp_path / 'work'}", f"--records={tmp_path / records}"]
        assert main([f"--sweep={path}", *place]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and sorted(tmp_path.iterdir()) == [path]
        return line

    config = "'configs/run.py:grpo,arithmetic'"
    assert f"error: {path}: the runs 'x' and 'x/y': one" in said(
        f"Run('x', {config}), Run('x/y', {config})"
    )
    assert "two checkpoints are made in" in said(
        f"Run('x', {config})", "Checkpoint('c', 'a'), Checkpoint('c', './a')"
    )
    assert "work/x/records: lies in the folder" in said(
        f"Run('x', {config})", records="work/x/records"
    )
    with pytest.raises(ValueError, match="another spelling of 'x'"):
        path.write_text(body.format("Run('./x', 'c.py')"))
        sweep.run_config(f"{path}:./x")
