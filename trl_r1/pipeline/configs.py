"""Where the YAML configurations lie: in the repository's `recipes/configs`, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

from trl_r1.exceptions import unknown

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
