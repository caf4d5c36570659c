"""Help pages: an example first, options in groups, and commands in the order of the workflow."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from typer.core import TyperCommand, TyperGroup

_EXAMPLE = "\b\nExample"
_INPUT_AND_OUTPUT, _RUN, _MESSAGES = "Input and output", "The run", "Messages"
# Group of each option that several commands share or that concerns files, by the name of its parameter.
_GROUPS = {
    **dict.fromkeys(("out", "overwrite", "append", "store", "references", "output_format"), _INPUT_AND_OUTPUT),
    **dict.fromkeys(("file_format", "id_field", "structure_field", "save_labels", "title"), _INPUT_AND_OUTPUT),
    **dict.fromkeys(("limit", "estimate", "budget", "device", "allow_mixed_devices", "scheduler", "max_edges"), _RUN),
    **dict.fromkeys(("as_json", "quiet", "verbose", "help"), _MESSAGES),
}
_OF_ALL_VERBS = ("--json", "--quiet", "-q", "--verbose", "-v")
_ORDER = ("Options", _INPUT_AND_OUTPUT, _RUN, _MESSAGES)


class Verb(TyperCommand):
    """A command whose help page shows the example below the first sentence, and the options in groups."""

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        paragraphs = (self.help or "").split("\n\n")
        examples = [text for text in paragraphs if text.startswith(_EXAMPLE)]
        others = [text for text in paragraphs if text not in examples]
        self.help = "\n\n".join([*others[:1], *examples, *others[1:]])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options by group; required ones come first."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Required": [], **{name: [] for name in _ORDER}}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                group = "Arguments"
            else:
                group = "Required" if parameter.required else _GROUPS.get(parameter.name or "", _ORDER[0])
            groups[group].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


class Verbs(TyperGroup):
    """The group of all commands; its help page lists them by stage of the workflow."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Also accept the options that all commands share before the command, by moving them after it."""
        count = len(list(takewhile(_OF_ALL_VERBS.__contains__, args)))
        if count < len(args):
            args = [args[count], *args[:count], *args[count + 1 :]]
        first = args[0].partition("=")[0] if args else ""
        of_verbs = {name for verb in self.commands.values() for one in verb.params for name in one.opts}
        if first in of_verbs - {name for one in self.get_params(ctx) for name in one.opts}:
            ctx.fail(f"{first} goes after the command: equiscreen COMMAND {first}")
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands and their first sentences by group."""
        groups: dict[str, list[str]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                groups.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(name)
        width = max(len(name) for names in groups.values() for name in names)
        for group, names in groups.items():
            with formatter.section(group):
                found = [(name, self.get_command(ctx, name)) for name in names]
                rows = [(name, one.get_short_help_str(formatter.width)) for name, one in found if one is not None]
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])
