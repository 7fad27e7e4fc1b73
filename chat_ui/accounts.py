"""Who may log in, once more than one person uses the chat.

python chat_ui/accounts.py --add anna        # asks for a password
python chat_ui/accounts.py --remove anna
python chat_ui/accounts.py                   # lists the names

Without accounts the chat is for whoever sits at this machine: it listens on loopback alone. With the first account
everybody has to log in. Of a password its scrypt hash is kept, with a salt of its own (RFC 7914).
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import hmac
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, run_command
from utils.files import read_json, write_json, write_text

_COST = {"n": 2**14, "r": 8, "p": 1}  # 16 MiB and some 50 ms for each guess
_SHORTEST = 8


def hash_password(password: str, salt: bytes | None = None) -> str:
    """What is kept of a password: salt and hash, in base64."""
    salt = secrets.token_bytes(16) if salt is None else salt
    key = hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, **_COST)
    return base64.b64encode(salt + key).decode()


class Accounts:
    """Names and hashes of passwords, in a JSON file.

    Args:
        path: of the file; where there is none, there are no accounts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, str]:
        """Name -> hash.

        Raises:
            UserError: the file is damaged.
        """
        if not self.path.is_file():
            return {}
        content = read_json(self.path)
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            raise UserError(f"{self.path} is damaged: remove it, and add the accounts again")
        return content

    def write(self, accounts: dict[str, str]) -> None:
        """Keeps them, for the owner's eyes alone."""
        write_json(self.path, accounts)
        self.path.chmod(0o600)

    def check(self, name: str, password: str) -> bool:
        """Whether that is the password; for a name that is not there it takes as long to say no."""
        kept = self.read().get(name, hash_password(""))
        salt = base64.b64decode(kept)[:16]
        return hmac.compare_digest(kept, hash_password(password, salt)) and name in self.read()


def session_secret(path: Path) -> str:
    """What logins are signed with, from a file that is made when it is not there: a restart alone logs nobody out."""
    if not path.is_file():
        write_text(path, secrets.token_urlsafe(48))
        path.chmod(0o600)
    return path.read_text(encoding="utf-8")


def chat_folder() -> Path:
    """Where the chat keeps its history, accounts and secret."""
    return Path(os.environ.get("SCRATCHBOOK_RUNS", "runs")) / "chat"


@dataclass(frozen=True)
class ManageAccounts:
    """The flags of this script."""

    add: str | None = None
    """A name that may log in, or whose password changes. The password is asked for, or read from a pipe."""
    remove: str | None = None
    """A name that may no longer log in."""


def main(options: ManageAccounts) -> None:
    accounts = Accounts(chat_folder() / "accounts.json")
    kept = accounts.read()
    before = dict(kept)
    if options.add is not None:
        if not options.add.strip():
            raise UserError("--add needs a name")
        kept[options.add] = hash_password(_ask_password(options.add))
        accounts.write(kept)
    if options.remove is not None:
        if options.remove not in kept:
            raise UserError(f"there is no account {options.remove!r}: there are {', '.join(sorted(kept)) or 'none'}")
        del kept[options.remove]
        if kept:
            accounts.write(kept)
        else:
            accounts.path.unlink()
    if kept != before:  # who is logged in stays so for a week, unless what that was signed with is gone
        (chat_folder() / "secret").unlink(missing_ok=True)
    print(f"May log in: {', '.join(sorted(kept)) or 'nobody; the chat is for this machine alone'}")
    print("Next: make chat; a chat that runs already is to be started anew, and then everybody has to log in again")


def _ask_password(name: str) -> str:
    if not sys.stdin.isatty():
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = getpass.getpass(f"Password of {name}: ")
        if password != getpass.getpass("Once more: "):
            raise UserError("those were two passwords: try again")
    if len(password) < _SHORTEST:
        raise UserError(f"a password has at least {_SHORTEST} characters")
    return password


if __name__ == "__main__":
    run_command(main, ManageAccounts)
