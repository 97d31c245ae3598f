"""A listener that keeps what a step says, and passes over how far along it is."""


class Listener:
    """What was said, `told`, in its order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def advance(self, what: str, done: int, total: int | None = None, unit: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        self.told.append(text)
