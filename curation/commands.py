"""What all commands share: the terminal, errors, the start of Ray, the version of the code.

Loads neither Ray nor a video library when it is imported; the trainer's commands use it too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand

from curation.places import check_temp
from curation.settings import ConfigError, RunError
from curation.shards import Dataset, DatasetError

USAGE, FAILED_RUN = 2, 1  # exit codes
GOES_ON = "what is committed stays, and the same command goes on from there"


# -- the terminal


QUIET = typer.Option("--quiet", help="Say nothing but errors.")
JSON = typer.Option("--json", help="Say nothing but errors, and end with a JSON object on a line.")


def screen(*, quiet: bool = False) -> Console:
    """Standard output; tables in a log are not squeezed into 80 columns. `quiet`: nothing of it."""
    return Console(soft_wrap=not sys.stdout.isatty(), quiet=quiet)


def tell_run(dataset: Dataset) -> None:
    """Print where a run wrote, and its run.json, as one JSON object on a line."""
    record = json.loads(dataset.read_bytes("run.json"))
    typer.echo(json.dumps({"output": dataset.uri} | record))


UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(text: str, style: str = "") -> Text:
    r"""Text as it is: no markup or emoji code in it is read, what would steer a terminal is shown.

    >>> plain("My talk [dQw4w9WgXcQ].mp4\x1b[2J").plain
    'My talk [dQw4w9WgXcQ].mp4\\x1b[2J'
    """
    return Text(visible(text), style)


def visible(text: str) -> str:
    """A text in which what would steer a terminal is spelled out."""
    return UNSHOWN.sub(lambda found: repr(found[0])[1:-1], text)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line that may hold users' text: whole, as it is, and broken by the terminal alone."""
    console.print(plain(text, style), soft_wrap=True)


@contextmanager
def without_stdin() -> Iterator[None]:
    """Inside, standard input is empty for this process and for all that it starts.

    ffmpeg sets the terminal's attributes when its standard input is one. A process that does so
    outside the terminal's foreground group, as Ray's workers are, is stopped by the kernel
    (SIGTTOU) and waits for ever. Importing scenedetect runs ffmpeg.
    """
    before = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Inside, Ctrl-C and SIGTERM raise KeyboardInterrupt, and set an event that is to be looked at.

    Raised while Ray calls back into Python, the interrupt is lost there: a run went on to its end.
    """
    stop = threading.Event()

    def interrupt(number: int, frame: Any) -> None:
        stop.set()
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- help


def command_app() -> typer.Typer:
    """What a command is made of; `--install-completion` comes with it."""
    return typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


def examples(module: str | None) -> str:
    """The example lines of a command's module text, for its `epilog`."""
    lines = (module or "").splitlines()
    return "\n".join(line for line in lines if line.startswith(("vf-", "python ", "ray ")))


class Command(TyperCommand):
    """A command whose help ends with examples, a line each, and names values as others' does."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [each for each in self.params if each.param_type_name == "argument"]
        names = [argument_name(each) for each in arguments]
        pairs = zip(names, arguments, strict=True)
        return ["[OPTIONS]", *[n if each.required else f"[{n}]" for n, each in pairs]]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title in ("Arguments", "Options"):
            kind = title.lower().removesuffix("s")
            rows = [
                help_row(each, ctx)
                for each in self.get_params(ctx)
                if each.param_type_name == kind and not getattr(each, "hidden", False)
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        # Not wrapped: a line is there to be copied.
        with formatter.section("Examples"):
            for line in (self.epilog or "").splitlines():
                formatter.write(f"  {line}\n")


VALUES = {"int": "N", "float": "NUMBER", "path": "PATH", "file": "PATH"}  # TEXT otherwise


def argument_name(argument: Any) -> str:
    name = str(argument.metavar or argument.name).upper()
    return name + "..." * (argument.nargs != 1)


def help_row(param: Any, ctx: Any) -> tuple[str, str]:
    """A parameter as help shows it: what is typed, and what it does with its default."""
    if param.param_type_name == "argument":
        name = argument_name(param)
    else:
        name = " / ".join([*param.opts, *param.secondary_opts])
        if not param.is_flag:
            # Of typer before 0.20 and after.
            told = param.display_type(ctx) if hasattr(param, "display_type") else str(param.type)
            kinds = (value for kind, value in VALUES.items() if kind in told.lower())
            name += f" {param.metavar or next(kinds, 'TEXT')}"
    default = param.default
    notes = []
    if param.required:
        notes.append("required")
    elif default is True:
        notes.append("default: on")
    elif isinstance(default, str | int | float) and default not in (False, ""):
        notes.append(f"default: {default}")
    said = param.help or ""
    return name, f"{said}  [{'; '.join(notes)}]" if notes else said


# -- errors


Kinds = tuple[type[BaseException], ...]


@contextmanager
def told_errors(
    goes_on: str = "", *, mistakes: Kinds = (), failures: Kinds = (), stops: Kinds = ()
) -> Iterator[None]:
    """Tell an error in one line and exit: 2 for a user's mistake, 1 for a run that failed.

    A mistake is a ConfigError, a DatasetError or one of `mistakes`; a failure a RunError, an error
    of Ray or of the operating system, or one of `failures`; a stop is Ctrl-C or one of `stops`.
    `goes_on` says what stays after a failure or a stop and how to go on. A Ray that was started
    inside is left. Everything else is a fault of ours and keeps its traceback.
    """
    ours = not ray_runs()
    mistakes = (ConfigError, DatasetError, *mistakes)
    stops = (KeyboardInterrupt, *stops)
    try:
        yield
    except mistakes as error:
        end(USAGE, f"error: {one_line(error)}")
    except stops as error:
        end(FAILED_RUN, "; ".join(filter(None, [one_line(error) or "stopped", goes_on])))
    except BaseException as error:
        if not isinstance(error, (RunError, OSError, *ray_errors(), *failures)):
            raise
        end(FAILED_RUN, f"the run failed: {one_line(error)}", goes_on)
    finally:
        if ours and ray_runs():
            sys.modules["ray"].shutdown()


def end(code: int, *lines: str) -> NoReturn:
    errors = Console(stderr=True)
    for line in filter(None, lines):
        say(errors, line, "red")
    raise SystemExit(code) from None


def one_line(error: BaseException) -> str:
    """What an error says. Of one in a task of Ray that we foresee, without the task's traceback."""
    cause = getattr(error, "cause", None)
    foreseen = isinstance(cause, ConfigError | DatasetError | RunError | OSError)
    text = str(cause if foreseen else error)
    return text if is_task_error(error) and not foreseen else " ".join(text.splitlines())


def is_task_error(error: BaseException) -> bool:
    return "ray" in sys.modules and isinstance(error, sys.modules["ray"].exceptions.RayTaskError)


def ray_errors() -> Kinds:
    """Ray's errors; none where Ray is not loaded, which costs a second."""
    return (sys.modules["ray"].exceptions.RayError,) if "ray" in sys.modules else ()


def ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


# -- Ray


# Of every Ray that this process starts: Ray reads it once (2.60).
TOKEN = secrets.token_hex(32)


def start_ray(address: str | None, num_cpus: int | None = None) -> None:
    """Join the cluster at `address` or at RAY_ADDRESS (set inside a Ray job), or start one here.

    A cluster that happens to run on this machine is not joined unasked. One that is started here
    is for this process alone: it listens on the loopback address, and wants a token that is made
    for it. `num_cpus` is of one that is started here, all of the machine's by default. Raises
    ConfigError when there is no cluster at the address or no place for one here, and RunError when
    one does not start in time.
    """
    check_temp(address)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        # In the environment, so that none is left in the home folder, where a later `ray start`
        # would find it and its `ray job submit` another.
        os.environ["RAY_AUTH_TOKEN"] = TOKEN
        # Ray sets the mode itself where none is set. A Ray that was imported before does not look
        # at one that is set later (2.60).
        os.environ.pop("RAY_AUTH_MODE", None)
        # When this process is killed, a worker that was just starting looks for its head this
        # long before it gives up; 60 s otherwise.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        options |= {"include_dashboard": False, "num_cpus": num_cpus}
    try:
        with without_stdin(), on_loopback() if address == "local" else contextlib.nullcontext():
            import ray

            ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {error}") from None
    except Exception as error:
        # Ray raises a plain one after 30 s, which it does not let anybody change (2.60).
        if type(error) is not Exception or "timed out" not in str(error):
            raise
        message = "Ray did not start within 30 s: this machine has too much else to do"
        raise RunError(f"{message}; the same command again goes on") from error


@contextmanager
def on_loopback() -> Iterator[None]:
    """Inside, a Ray that starts is one of a single machine, and listens on its loopback address.

    It is what Ray does on macOS and Windows. Elsewhere all its processes listen on every address,
    whatever _node_ip_address says (2.60).
    """
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before = os.environ.get(name)
    os.environ[name] = "0"  # for the processes that it starts
    from ray._private import ray_constants

    asked, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = asked
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


# -- the code


def code_version() -> str:
    """The package's version and a hash of the curation code itself."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    with contextlib.suppress(metadata.PackageNotFoundError):
        return f"{metadata.version('videofactory')}+{digest.hexdigest()[:10]}"
    return f"uninstalled+{digest.hexdigest()[:10]}"
