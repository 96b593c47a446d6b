"""The help of the command line: commands by what they are for."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

PANELS = RUN, LOOK, EXPERIMENT, ADMINISTER = "Run", "Look", "Experiment", "Administer"


def panel_of(command: Any) -> str:  # noqa: ANN401 - Typer's Click types are private
    """The section of the help that lists a command."""
    panel = getattr(command, "rich_help_panel", None)
    return panel if isinstance(panel, str) else ADMINISTER


class HelpfulGroup(TyperGroup):
    """A group of commands that prints its help when none is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's Click types are private
        """Parse the arguments; none are the same as ``--help``."""
        return super().parse_args(ctx, args or ["--help"])


class GroupedHelp(HelpfulGroup):
    """A group of commands whose help lists them by the `rich_help_panel` of each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - Typer's Click types are private
        """Write a section for each panel."""
        sections: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        longest = max(map(len, self.commands))
        for name, command in self.commands.items():
            text = command.get_short_help_str(limit=formatter.width - longest - 4)
            sections[panel_of(command)].append((name, text))
        for panel, rows in sections.items():
            with formatter.section(panel):
                formatter.write_dl(rows)
