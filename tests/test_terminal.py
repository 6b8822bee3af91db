"""Every command ends in one line and an exit code with a meaning, and its JSON stays clean."""

import errno
import json

import pytest
import typer
from typer.testing import CliRunner

from assay.privacy.errors import AssayError, BadData, BadInput, Refused, Tampered, Unavailable
from assay.privacy.terminal import Json, command, emit, note


def run(function, *arguments):
    app = typer.Typer()
    app.command()(command(function))
    return CliRunner().invoke(app, list(arguments))


def failing_with(error):
    def work() -> None:
        raise error

    return run(work)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AssayError("failed"), 1),
        (Unavailable("no answer"), 1),
        (Tampered("row 3: the signature does not verify"), 1),
        (BadInput("--rows", value=0, allowed="1 or more"), 2),
        (BadData("row 7, column 'x'", value="abc", allowed="a number"), 2),
        (Refused("the budget is used up", code="budget"), 3),
    ],
)
def test_every_error_has_its_exit_code_and_one_line(error, code):
    done = failing_with(error)
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr == f"assay: {error}\n"


def test_an_error_that_quotes_several_lines_still_is_one_line():
    done = failing_with(AssayError("the other side said:\nno\r\nand no again"))
    assert done.stderr == "assay: the other side said: no and no again\n"


def test_success_is_exit_code_0():
    def work() -> None:
        note("working")
        emit({"a": 1}, as_json=False, text="done")

    done = run(work)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "done\n", "working\n")


def test_json_is_one_object_on_standard_output_and_notes_go_elsewhere():
    def work(as_json: Json = False) -> None:
        note("reading")
        emit({"rows": 3, "name": "é"}, as_json=as_json, text="3 rows")
        note("done")

    done = run(work, "--json")
    assert json.loads(done.stdout) == {"rows": 3, "name": "é"}
    assert done.stdout.count("\n") == 1
    assert done.stderr == "reading\ndone\n"


def test_json_never_holds_nan():
    def work() -> None:
        emit({"auroc": float("nan")}, as_json=True, text="")

    done = run(work)
    assert isinstance(done.exception, ValueError)
    assert done.stdout == ""


def test_a_full_disk_is_one_line_and_exit_code_1():
    def work() -> None:
        with open("/dev/full", "w", encoding="utf-8") as file:
            file.write("x")

    done = run(work)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", "assay: No space left on device\n")


def test_no_permission_names_the_file():
    done = failing_with(PermissionError(errno.EACCES, "Permission denied", "/holder/ledger.db"))
    assert (done.exit_code, done.stderr) == (1, "assay: Permission denied /holder/ledger.db\n")


def test_a_missing_file_names_the_file(tmp_path):
    def work() -> None:
        (tmp_path / "records.csv").read_bytes()

    done = run(work)
    assert done.exit_code == 1
    assert done.stderr == f"assay: No such file or directory {tmp_path / 'records.csv'}\n"


def test_ctrl_c_is_exit_code_130_without_a_traceback():
    done = failing_with(KeyboardInterrupt())
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", "assay: interrupted\n")


def test_a_defect_of_ours_keeps_its_traceback():
    done = failing_with(ZeroDivisionError("a defect"))
    assert isinstance(done.exception, ZeroDivisionError)


def test_a_command_keeps_its_name_and_help():
    @command
    def weigh() -> None:
        """Weigh it."""

    assert (weigh.__name__, weigh.__doc__) == ("weigh", "Weigh it.")


class TestErrorLines:
    def test_a_line_holds_place_setting_value_range_and_remedy(self):
        error = BadInput("rows", value=0, allowed="1 or more", remedy="Add records", where="client.toml:7")
        assert str(error) == "client.toml:7: rows is 0; allowed: 1 or more. Add records"

    def test_a_line_is_one_line_whatever_the_value_is(self):
        error = BadInput("name", value="a\nb" * 100, allowed="a\n  word")
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 120

    def test_a_cell_can_be_left_out_of_what_is_sent_or_logged(self):
        error = BadData("row 7, column 'pan'", value="ABCDE1234F", allowed="a number", where="a.csv")
        assert "ABCDE1234F" in str(error)
        assert error.without_cell() == "a.csv: row 7, column 'pan'; allowed: a number"
