"""A group of commands that is a command as well: `takedown WS` beside `takedown list WS`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_DEFAULT = "takedown"


class OneStep(TyperGroup):
    """Arguments that begin with none of the group's commands are those of its default one.

    A workspace that is called as one of them is given as a path, such as `./list`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before them."""
        if not args or args[0] not in self.commands:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or the default one."""
        return super().get_command(ctx, cmd_name) or self.commands[_DEFAULT]
