"""Two handshake conversations that talk to each other without a wire, a clock or a thread."""

from collections.abc import Callable

from channels.meeting import Agreement, Ask, Conversation

Change = Callable[[int, bytes], bytes]  # what a message becomes on its way: its number, what was said


def together(
    asking: Conversation, answering: Conversation, change: Change = lambda index, said: said
) -> list[Agreement]:
    """Both agreements, in the order they were reached; EOFError where one side waits for what never comes."""
    sides, heard, done, index = [asking, answering], [b"", b""], list[Agreement](), 0
    asks: list[Ask | None] = [next(asking), next(answering)]
    while len(done) < 2:
        moved = False
        for me in (0, 1):
            ask = asks[me]
            if ask is None:
                continue
            if ask.say:
                heard[1 - me] += change(index, ask.say)
                index += 1
                asks[me] = ask._replace(say=b"")
            elif len(heard[me]) >= ask.want:
                piece, heard[me] = heard[me][: ask.want], heard[me][ask.want :]
                try:
                    asks[me] = sides[me].send(piece)
                except StopIteration as end:
                    asks[me] = None
                    done.append(end.value)
            else:
                continue
            moved = True
        if not moved:
            raise EOFError
    return done
