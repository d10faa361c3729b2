"""YAML configurations (in the repository's `recipes/configs`, or inside the installed package), and options over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trl_r1.exceptions import ConfigurationError, TrlR1Error, unknown

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel carries a copy of recipes/configs as trl_r1/configs (see pyproject.toml); a checkout has the original.
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "recipes" / "configs")


def config_names(stage: str) -> dict[str, Path]:
    """The configurations that come with the package.

    Args:
        stage (`str`): Name of the stage's folder, such as `"r1_zero"`.

    Returns:
        `dict[str, Path]`: Files by name, sorted.
    """
    found = {path.stem: path for folder in _FOLDERS for path in (folder / stage).glob("*.yaml")}
    return dict(sorted(found.items()))


def find_config(stage: str, name: str) -> Path:
    """Resolve what was given to `--config`: a file, or the name of a configuration that comes with the package.

    Args:
        stage (`str`): Name of the stage's folder, such as `"r1_zero"`.
        name (`str`): A path, or a name such as `"nano_cpu"`.

    Returns:
        `Path`: The file.

    Raises:
        [`ConfigurationError`]: If it is neither; the message lists the names.
    """
    if Path(name).is_file():
        return Path(name)
    known = config_names(stage)
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    raise unknown("configuration", name, known, "Or give the path of a YAML file.")


def with_config_path(stage: str, args: list[str], default: str, unless: tuple[str, ...]) -> list[str]:
    """Put the resolved file in the place of a `--config` name, and the default where nothing says otherwise.

    Args:
        stage (`str`): Name of the stage's folder.
        args (`list[str]`): Command-line arguments.
        default (`str`): Name of the configuration to use without `--config`.
        unless (`tuple[str, ...]`): Options that, when given, mean that the user brings all settings.

    Returns:
        `list[str]`: Arguments with `--config FILE`, as TRL's parser takes them.
    """
    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" in args:
        place = args.index("--config") + 1
        if place == len(args):
            raise unknown(
                "configuration", "", config_names(stage), "`--config` needs a name or the path of a YAML file."
            )
        return [*args[:place], str(find_config(stage, args[place])), *args[place + 1 :]]
    given = {arg.split("=", 1)[0].replace("-", "_") for arg in args if arg.startswith("--")}
    if given & {option.replace("-", "_") for option in unless}:
        return args
    return ["--config", str(find_config(stage, default)), *args]


def parse_options(command: str, types: Sequence[type], args: Sequence[str], *, usage: str = "") -> Any:
    """Read a configuration and the options over it with TRL's parser; tell mistakes in a sentence, not a traceback.

    Args:
        command (`str`): The command's name, such as `"r1-zero"`.
        types (`Sequence[type]`): Dataclasses of the settings.
        args (`Sequence[str]`): Options, `--config FILE` among them ([`with_config_path`]).
        usage (`str`, *optional*): What stands after the command in its usage.

    Returns:
        `tuple`: One instance of each type.

    Raises:
        [`ConfigurationError`]: For unknown options and settings, with those that are meant perhaps; for values that a
            dataclass refuses; for a file that is no YAML mapping.
    """
    import yaml
    from trl import TrlParser

    kinds: Any = tuple(types)
    parser = TrlParser(kinds, prog=f"trl-r1 {command} {usage}".strip())
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    try:
        *parsed, in_file, given = parser.parse_args_and_config(
            args, return_remaining_strings=True, separate_remaining_strings=True
        )
    except TrlR1Error:
        raise
    except yaml.YAMLError as error:
        raise ConfigurationError(f"The configuration of `trl-r1 {command}` is no YAML: {error}") from error
    except ValueError as error:
        fix = " Add `--use_cpu true --bf16 false` for a machine without such a GPU." if "bf16/gpu" in str(error) else ""
        raise ConfigurationError(f"{error}{fix}") from error
    if in_file or given:
        raise ConfigurationError(_unknown_options([*in_file[::2]], "setting", command, options) if in_file else (
            _unknown_options([one for one in given if one.startswith("-")] or given, "option", command, options)
        ))  # fmt: skip
    return tuple(parsed)


def _unknown_options(names: Iterable[str], kind: str, command: str, options: Sequence[str]) -> str:
    """Say which options are unknown, and which of the known ones look like them."""
    told = []
    for name in (one.partition("=")[0] for one in names):
        close = get_close_matches(name, options, n=3)
        shown = [one.removeprefix("--") if kind == "setting" else one for one in (name, *close)]
        told.append(f"Unknown {kind} {shown[0]!r}" + (f" (do you mean {' or '.join(shown[1:])}?)" if close else ""))
    return f"{', '.join(told)}. `trl-r1 {command} --help` lists what there is."
