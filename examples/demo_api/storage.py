"""Where users live: in memory. Another store needs only the methods of `UserStore`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person who may log in."""

    id: int
    username: str
    password_hash: str


class DuplicateUserError(Exception):
    """A user of that name exists."""


class UserStore:
    """Users by name. The methods are coroutines because a database's would be."""

    def __init__(self) -> None:
        self._by_name: dict[str, User] = {}

    async def add(self, username: str, password_hash: str) -> User:
        """Create a user; raise `DuplicateUserError` when the name is taken."""
        if username in self._by_name:
            raise DuplicateUserError(username)
        user = User(id=len(self._by_name) + 1, username=username, password_hash=password_hash)
        self._by_name[username] = user
        return user

    async def find(self, username: str) -> User | None:
        """Return the user of that name, if there is one."""
        return self._by_name.get(username)
