import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from certbench import cli, locks
from certbench.errors import CertbenchError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with the embedded study's configuration."""
    (tmp_path / "config").mkdir()
    for name in ("config.yaml", "schema.yaml"):
        (tmp_path / "config" / name).write_text((ROOT / "config" / name).read_text())
    monkeypatch.chdir(tmp_path)
    from certbench import config

    config.schema.cache_clear()
    return tmp_path


def _refused(capsys, *arguments):
    assert cli.main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(("certbench: ", "config/"))
    assert "Traceback" not in said.err
    return said.err


def _cpu_seconds(*arguments):
    """Processor time of a Python process (a busy machine makes any wait), and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help_costs_little_more_than_python_itself_and_names_every_command():
    bare = min(_cpu_seconds("-c", "import argparse, yaml")[0] for _ in range(3))
    runs = [_cpu_seconds("-m", "certbench", "--help") for _ in range(3)]
    assert min(spent for spent, _ in runs) < 5 * bare
    for command in ("plan", "report", "check", "unlock", "schema", "import-log", "ladder-check"):
        assert command in runs[0][1]


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, certbench.cli; certbench.cli.parser(); "
        "print({'numpy', 'pandas', 'pyarrow', 'torch', 'matplotlib', 'jinja2', 'jsonschema'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([])
    assert error.value.code == 2


def test_plan_counts_every_job_by_rule(project, capsys):
    from certbench import config, plan

    assert cli.main(["plan"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    counted = {rule: int(number.replace(",", "")) for rule, number in lines}
    expected = plan.make(config.load()).counts()
    assert counted == {**expected, "all": sum(expected.values())}


def test_plan_lays_files_over_the_base(project, capsys):
    (project / "more.yaml").write_text("shards: {items: 50}\n")
    cli.main(["plan"])
    before = capsys.readouterr().out
    assert cli.main(["plan", "--configfile", "more.yaml"]) == 0
    assert capsys.readouterr().out != before


def test_a_wrong_key_is_told_in_one_message(project, capsys):
    (project / "wrong.yaml").write_text("sed: 3\n")
    said = _refused(capsys, "plan", "--configfile", "wrong.yaml")
    assert "unknown key 'sed'" in said and "did you mean 'seed'" in said


def test_check_looks_at_every_file_and_fails_if_one_is_wrong(project, capsys):
    (project / "wrong.yaml").write_text("defenses: {smoothing: {sigmoid: 1}}\n")
    (project / "right.yaml").write_text("seed: 4\n")
    assert cli.main(["check", "wrong.yaml", "right.yaml"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("right.yaml: fine, ")
    assert "wrong.yaml: config: defenses.smoothing: unknown key 'sigmoid'" in said.err
    assert cli.main(["check"]) == 0


def test_an_absent_file_is_named(project, capsys):
    assert "absent.yaml: does not exist" in _refused(capsys, "plan", "--configfile", "absent.yaml")


def test_report_without_results_says_what_is_missing(project, capsys):
    said = _refused(capsys, "report")
    assert "results/tables/digits.parquet" in said and "--partial" in said
    assert not Path("results").exists()


def test_report_partial_builds_a_page_of_nothing(project, capsys):
    assert cli.main(["report", "--partial"]) == 0
    assert capsys.readouterr().out.startswith("results/report-partial.html (")
    assert "no answer yet" in Path("results/report-partial.html").read_text(encoding="utf-8")


def test_report_takes_a_whole_configuration_from_standard_input(project):
    from certbench import config

    done = subprocess.run(
        [sys.executable, "-m", "certbench", "report", "--partial", "--quiet", "--config-stdin"],
        input=json.dumps({**config.load(), "report": {"title": "Given by pipe"}}),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    page = Path("results/report-partial.html").read_text(encoding="utf-8")
    assert "<title>Given by pipe</title>" in page


def test_no_json_on_standard_input_is_a_clear_mistake(project, monkeypatch, capsys):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("{"))
    assert "standard input: holds no JSON" in _refused(
        capsys, "report", "--partial", "--config-stdin"
    )


def test_schema_prints_and_writes_the_same_page(project, capsys):
    assert cli.main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["schema", "--write", "docs/page.md"]) == 0
    assert Path("docs/page.md").read_text(encoding="utf-8") == printed
    assert printed.startswith("# Configuration\n")


# --- published logs -----------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    """A log as it is published: radii of n = 100,000 samples at alpha = 0.001, three digits."""
    from certbench.certify.intervals import cp_lower
    from certbench.certify.radii import radius_one

    counts = np.random.default_rng(0).integers(60_000, 99_990, 200)
    radii = radius_one(cp_lower(counts, 100_000, 0.001), 0.25)
    lines = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    lines += [f"{i * 20}\t{i % 10}\t{i % 10}\t{r:.3}\t1\t0:00:17.3" for i, r in enumerate(radii)]
    path = tmp_path / "sigma_0.25"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_imported_log_is_a_file_of_certificates(log, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    arguments = ["import-log", str(log), str(out), "--sigma", "0.25"]
    assert cli.main([*arguments, "--dataset", "cifar10", "--model", "cohen"]) == 0
    assert "200 rows of kind certificates" in capsys.readouterr().out
    from certbench.results import rows

    table = rows.read(out, "certificates")
    assert table.num_rows == 200 and set(table["model"].to_pylist()) == {"cohen"}
    assert rows.provenance(out)["work"]["sigma"] == 0.25
    assert pq.read_schema(out).names[0] == "task"


def test_a_ladder_check_finds_what_a_log_was_made_with(log, capsys):
    assert cli.main(["ladder-check", str(log), "--sigma", "0.25"]) == 0
    best = capsys.readouterr().out.splitlines()[1].split()
    assert best == ["100,000", "0.001", "100.00%"]


def test_a_ladder_check_tests_the_claim_that_it_is_given(log, capsys):
    check = ["ladder-check", str(log), "--sigma", "0.25"]
    assert cli.main([*check, "--n", "10", "--alpha", "0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["10", "0.001", "0.00%"] in [line.split() for line in lines]
    assert "give both or none" in _refused(capsys, *check, "--n", "10")


def test_a_ladder_check_says_where_radii_cannot_tell(tmp_path, capsys):
    path = tmp_path / "log.tsv"
    header = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    path.write_text(header + "0\t3\t3\t0.183\t1\t1.0\n")
    assert cli.main(["ladder-check", str(path), "--sigma", "0.25"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 radii: too small to tell 6 claims apart"
    path.write_text(header + "0\t3\t-1\t0.0\t0\t1.0\n")
    assert "no certified radius" in _refused(capsys, "ladder-check", str(path), "--sigma", "0.25")
    path.write_text(header + "0\t3\t3\t2.5\t1\t1.0\n")
    assert cli.main(["ladder-check", str(path), "--sigma", "0.25"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 radii: no claim fits all"


def test_a_file_that_is_no_log_is_refused(tmp_path, capsys):
    path = tmp_path / "notes.txt"
    path.write_text("hello\n")
    assert "is no certification log" in _refused(capsys, "ladder-check", str(path), "--sigma", "1")


# --- locks --------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path, monkeypatch):
    folder = tmp_path / ".snakemake" / "locks"
    folder.mkdir(parents=True)
    (folder / "0.input.lock").write_text("a\n")
    (folder / "0.output.lock").write_text("b\n")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def running(tmp_path):
    """A live process that looks like Snakemake: a program of that name, started in the folder."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    program = bin_folder / "snakemake"
    program.write_text("import sys, time\nprint('up', flush=True)\ntime.sleep(60)\n")
    started = []

    def start(folder, *arguments):
        process = subprocess.Popen(
            [sys.executable, str(program), *arguments], cwd=folder, stdout=subprocess.PIPE
        )
        started.append(process)
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_unlock_without_a_lock_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["unlock"]) == 0
    assert capsys.readouterr().out == "There is no lock.\n"


def test_the_lock_of_a_dead_workflow_is_removed(locked, capsys):
    assert cli.main(["unlock"]) == 0
    assert not list(locked.iterdir())
    assert "no longer alive" in capsys.readouterr().out


def test_the_lock_of_a_live_workflow_stays(locked, running, tmp_path, capsys):
    process = running(tmp_path)
    said = _refused(capsys, "unlock")
    assert f"process {process.pid}" in said and len(list(locked.iterdir())) == 2
    process.kill()
    process.wait()
    assert cli.main(["unlock"]) == 0
    assert not list(locked.iterdir())


def test_a_workflow_directed_here_from_elsewhere_counts_as_alive(locked, running, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    process = running(elsewhere, "--directory", str(tmp_path))
    assert locks.alive(tmp_path) == [process.pid]


def test_a_workflow_of_another_folder_does_not_hold_this_lock(locked, running, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    running(elsewhere)
    assert locks.alive(tmp_path) == []


def test_on_a_network_file_system_the_user_has_to_say_so(locked, monkeypatch, capsys):
    monkeypatch.setattr(locks, "file_system", lambda folder: "lustre")
    assert "another machine" in _refused(capsys, "unlock")
    assert len(list(locked.iterdir())) == 2
    assert cli.main(["unlock", "--anyway"]) == 0
    assert not list(locked.iterdir())


@pytest.mark.parametrize(
    ("words", "yes"),
    [
        (["/usr/bin/python3", "/opt/bin/snakemake", "--profile", "p"], True),
        (["python3.11", "-u", "/opt/bin/snakemake"], True),
        (["python", "-m", "snakemake", "-n"], True),
        (["snakemake"], True),
        (["python3", "/project/.snakemake/scripts/tmpab12.collect.py"], True),
        (["vim", "snakemake"], False),
        (["python", "train.py", "snakemake"], False),
        (["python", "-m", "pytest", "snakemake"], False),
        (["tail", "-f", ".snakemake/log"], False),
        ([], False),
    ],
)
def test_only_a_command_that_runs_snakemake_is_one(words, yes):
    assert locks.is_snakemake(words) is yes


def test_the_file_system_is_that_of_the_deepest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "a / ext4 rw 0 0\nb /scratch lustre rw 0 0\nc /scratch/my\\040data nfs4 rw 0 0\n"
    )
    assert locks.file_system(Path("/scratch/x"), mounts) == "lustre"
    assert locks.file_system(Path("/scratch/my data/x"), mounts) == "nfs4"
    assert locks.file_system(Path("/home"), mounts) == "ext4"
    assert locks.file_system(Path("/home"), tmp_path / "absent") == ""


def test_a_process_of_another_user_may_own_the_lock(tmp_path):
    """Its working folder cannot be read, so it counts as alive here."""
    fake = tmp_path / "proc"
    (fake / "self").mkdir(parents=True)
    (fake / "77").mkdir()
    (fake / "77" / "cmdline").write_bytes(b"python\0/usr/bin/snakemake\0")
    assert locks.alive(tmp_path, fake) == [77]


def test_errors_of_locks_are_for_people(locked, running, tmp_path):
    running(tmp_path)
    with pytest.raises(CertbenchError, match="wait for it, or end it"):
        locks.unlock(tmp_path)
    assert len(list(locked.iterdir())) == 2
