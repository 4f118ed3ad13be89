"""The command line: what help says, how errors leave, and what doctor finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version

import click
import pytest
import tiny_models
from click.testing import CliRunner

from toolguard.calibration.cli import COMMANDS, CommandEntry, LazyGroup, toolguard
from toolguard.calibration.command_output import write_json
from toolguard.guard.errors import ArtifactMismatch, ConfigError, ToolguardError

HELP = """\
Usage: toolguard [OPTIONS] COMMAND [ARGS]...

  Read a local model's tool choice before it is written, and stop the calls it
  would get wrong.

  Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 a gate was not met.

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Commands:
  doctor          Show what toolguard finds in a model.
  data            Validate and import labelled records.
  calibrate       Make a profile from a model and data.
  evaluate        Measure a profile on labelled records.
  report          Show what a profile is worth, on one page.
  check           Read the tool choice for one query.
  policy          Check a policy, or replay it on recorded calls.
  audit           List, verify and count what the guard recorded.
  dashboard       Watch decisions and answer approvals.
  call-or-answer  Measure when no tool should be called.
  correct         Compare what can be done with doubtful calls.
  guarantee       Test risk control and the drift alarm.
  steer-eval      Compare ways of steering the tool choice.
  replicate       Set the published claims beside numbers.
  train           Train the bundled reference agent.
"""


def run(*args, group=toolguard):
    return CliRunner().invoke(group, list(args), prog_name="toolguard", terminal_width=80)


def group_raising(error):
    """A group whose only command raises `error`."""

    @click.command()
    def command():
        raise error

    group = LazyGroup(name="toolguard", entries={})
    group.add_command(command, "fail")
    group.get_command = lambda _ctx, _name: command
    return group


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(option):
    """The help lists every command with its summary."""
    result = run(option)
    assert result.exit_code == 0
    assert result.stdout == HELP


def test_version():
    """The version printed is the installed one."""
    assert run("--version").stdout.strip() == f"toolguard, version {version('toolguard-margin')}"


def test_help_imports_no_command_and_no_torch():
    """Help answers without the seconds that torch takes."""
    code = """
import sys
from toolguard.calibration.cli import toolguard
toolguard(["--help"], standalone_mode=False)
loaded = [m for m in sys.modules if m.startswith("toolguard.calibration.commands.")]
sys.exit(str(loaded) if loaded or {"torch", "transformers", "numpy"} & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_no_command_is_a_usage_error():
    """A mistyped command exits with 2 and points at the help."""
    result = run("calibrat")
    assert result.exit_code == 2
    assert "No such command 'calibrat'" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no such file", hint="name one that exists"), 2),
        (ArtifactMismatch("the profile is another model's", hint="calibrate again"), 1),
        (ToolguardError("it failed"), 1),
    ],
)
def test_our_errors_leave_with_message_hint_and_code(error, code):
    """A ToolguardError goes to stderr as message and hint; no traceback, nothing on stdout."""
    result = run("fail", group=group_raising(error))
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == f"Error: {error}\n"


def test_other_errors_are_not_hidden():
    """A fault in the program is not dressed up as a user's error."""
    result = run("fail", group=group_raising(ZeroDivisionError("fault")))
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_missing_package_is_named():
    """A command whose module cannot be imported names the package, and exits with 2."""
    entries = {"gone": CommandEntry("toolguard.calibration.commands.no_such_module", "Not there.")}
    result = run("gone", group=LazyGroup(name="toolguard", entries=entries))
    assert result.exit_code == 2
    assert "no_such_module" in result.stderr


def test_commands_are_in_the_commands_package():
    """A command's module is named like the command."""
    for name, entry in COMMANDS.items():
        assert entry.module == f"toolguard.calibration.commands.{name.replace('-', '_')}"


def test_write_json(tmp_path, capsys):
    """JSON goes to a file or stdout, numbers that could not be computed as null."""
    value = {"auroc": float("nan"), "name": "Zürich", "low": [0.5, float("inf")]}
    expected = {"auroc": None, "name": "Zürich", "low": [0.5, None]}
    write_json(value, str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == expected
    write_json(value, "-")
    assert json.loads(capsys.readouterr().out) == expected
    with pytest.raises(ConfigError, match="cannot write"):
        write_json(value, str(tmp_path / "no" / "out.json"))


def test_doctor_reports(tiny_folder):
    """Doctor prints what it found, the decision token inside its text, in well under 10 s."""
    started = time.perf_counter()
    result = run("doctor", "--model", str(tiny_folder))
    assert time.perf_counter() - started < 10
    assert result.exit_code == 0, result.stderr
    for words in (
        "Qwen3ForCausalLM (qwen3)",
        "hermes (detected)",
        """{"name":' + ' "' + 'get_weather",'""",
        "3 of width 32 at model.layers",
        "2 of 2 blocks equal hidden_states[i + 1]; the last is after the final norm",
        "one step",
        "ok: the guard can read this model",
    ):
        assert words in result.stdout


def test_doctor_writes_json(tiny_folder, tmp_path):
    """--json - puts the report and nothing else on stdout; --json FILE leaves the table there."""
    result = run("doctor", "--model", str(tiny_folder), "--json", "-")
    report = json.loads(result.stdout)
    assert report["format"] == {
        "name": "hermes",
        "detected": True,
        "prefix": '<tool_call>\n{"name": "',
    }
    assert report["decision_token"]["token"] == ' "'
    assert report["layers"]["hooks_equal_hidden_states"] == 2
    assert report["timing"]["step_ms"] > 0
    path = tmp_path / "report.json"
    assert "ok:" in run("doctor", "--model", str(tiny_folder), "--json", str(path)).stdout
    assert json.loads(path.read_text())["fingerprint"] == report["fingerprint"]


def test_doctor_takes_format_layers_and_dtype(tiny_folder):
    """The overrides are obeyed and shown."""
    options = ("--format", "name_only", "--layers-path", "model.layers", "--dtype", "bfloat16")
    result = run("doctor", "--model", str(tiny_folder), "--device", "cpu", *options)
    assert result.exit_code == 0, result.stderr
    assert "name_only (as asked)" in result.stdout
    assert "bfloat16 on cpu" in result.stdout


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (("--format", "morse"), "morse", 2),
        (("--layers-path", "model.blocks"), "--layers-path", 1),
        (("--device", "tpu9000"), "tpu9000", 2),
        (("--dtype", "int4"), "int4", 2),
        (("--json", "no/such/folder/x.json"), "cannot write", 2),
        (("--nonsense",), "No such option", 2),
    ],
)
def test_doctor_refuses_bad_options(options, words, code, tiny_folder):
    """A bad option ends with a message that names it, and its exit code; no traceback."""
    result = run("doctor", "--model", str(tiny_folder), *options)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_needs_a_model():
    """Without --model it is a usage error."""
    result = run("doctor")
    assert result.exit_code == 2
    assert "--model" in result.stderr


def test_a_place_for_the_json_is_looked_at_first():
    """A --json that cannot be written is an error before the work, not after it."""
    result = run("doctor", "--model", "./nowhere", "--json", "no/such/folder/x.json")
    assert result.exit_code == 2
    assert "no/such/folder is no folder" in result.stderr


def test_doctor_refuses_a_missing_model():
    """A folder that is not there exits with 2 and a hint."""
    result = run("doctor", "--model", "./nowhere")
    assert result.exit_code == 2
    assert "there is no folder ./nowhere" in result.stderr
    assert "hint:" in result.stderr


def test_doctor_refuses_a_template_without_a_format(tiny_folder, tmp_path):
    """A model whose template names no known format fails with the option to set."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    result = run("doctor", "--model", str(folder))
    assert result.exit_code == 1
    assert "--format" in result.stderr


def test_doctor_refuses_a_model_without_a_template(tmp_path):
    """A tokenizer without a chat template cannot render a request."""
    tokenizer = tiny_models.tiny_tokenizer()
    tokenizer.chat_template = None
    tiny_models.tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    result = run("doctor", "--model", str(tmp_path))
    assert result.exit_code == 1
    assert "template" in result.stderr
