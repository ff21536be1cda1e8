"""A recorded trace, played again on the simulated machine: the checker's program.

Every call that worked becomes the simulator's call of the same meaning, with streams
and events of its own and the recorded addresses, at which nothing is touched. To a
question, "yes" is an order that the host knows about; "no" is none.

All host threads count as one. They are ordered by the link's mutex and Python's lock,
which no trace has.
"""

from simulator import Machine, Memory

PINNED = {"host_alloc": "pinned", "host_register": "registered"}
DEVICE = {"device_alloc": "device", "managed_alloc": "managed"}


def replay(calls, without=(), **machine):
    """Plays a trace; returns the `Machine`, whose `check()` says whether it is clean.

    Args:
        calls: of `recording.Recorder.calls()` or `recording.load`.
        without: places in the trace to leave out, such as a wait.
        machine: of `Machine`; mode "timed" with a profile predicts how long it takes.
    """
    devices = 1 + max((call.device for call in calls), default=0)
    m = Machine(**{"mode": "lazy", "devices": devices, **machine})
    player = Player(m)
    for place, call in enumerate(calls):
        if place not in without:
            m.label(f"call {place}")
            player.play(call)
    m.finish()
    return m


class Player:
    def __init__(self, m):
        self.m = m
        self.streams, self.events, self.named = {}, {}, set()

    def play(self, call):
        play = getattr(self, f"play_{call.entry}", None)
        known_no = call.entry.endswith("_done") and not call.answer
        if not play or call.status or known_no:
            self.m.lib.sim_spend()
        else:
            play(call)

    def stream(self, call):
        key = call.device, call.stream
        if key not in self.streams:
            self.streams[key] = (
                self.m.stream(f"stream {call.stream:#x}", call.device)
                if call.stream
                else self.m.default_stream(call.device)
            )
        return self.streams[key]

    def event(self, call):
        if call.event not in self.events:
            self.events[call.event] = self.m.event(device=call.device)
        return self.events[call.event]

    # ------------------------------------------------------------------ streams, events

    def play_stream_create(self, call):
        made = self.m.call("stream_create", call.device, False)
        self.streams[call.device, call.stream] = made

    def play_stream_destroy(self, call):
        self.m.call("stream_destroy", call.device, self.stream(call))
        del self.streams[call.device, call.stream]

    def play_stream_wait(self, call):
        self.m.call("stream_wait", call.device, self.stream(call))

    def play_stream_done(self, call):
        self.play_stream_wait(call)

    def play_stream_after(self, call):
        self.m.after(self.stream(call), self.event(call), call.device)

    def play_device_wait(self, call):
        self.m.call("device_wait", call.device)

    def play_event_create(self, call):
        self.events[call.event] = self.m.event(device=call.device)

    def play_event_destroy(self, call):
        self.m.call("event_destroy", call.device, self.events.pop(call.event))

    def play_event_record(self, call):
        self.m.record(self.event(call), self.stream(call), call.device)

    def play_event_wait(self, call):
        self.m.wait_event(self.event(call), call.device)

    def play_event_done(self, call):
        self.play_event_wait(call)

    # --------------------------------------------------------------------------- memory

    def play_host_alloc(self, call):
        kind = (PINNED | DEVICE)[call.entry].encode()
        self.m.lib.sim_spend()
        self.m.lib.sim_region(call.to, call.bytes, kind)

    def play_host_free(self, call):
        self.m.lib.sim_spend()
        self.m.lib.sim_region_end(call.to)

    play_host_register = play_device_alloc = play_managed_alloc = play_host_alloc
    play_host_unregister = play_device_free = play_managed_free = play_host_free

    # ----------------------------------------------------------------------------- work

    def play_copy_out(self, call):
        self.copy(call, True)

    def play_copy_in(self, call):
        self.copy(call, False)

    def copy(self, call, out):
        stream = self.stream(call)
        if stream not in self.named and call.stream:
            self.m.lib.sim_name_stream(stream, b"copy out" if out else b"copy in")
        self.named.add(stream)
        self.m.lib.sim_spend()
        self.m.lib.sim_copy(stream, out, call.to, call.source, call.bytes)

    def play_kernel(self, call):
        reads = [Memory(at, size) for at, size, write in call.ranges if not write]
        writes = [Memory(at, size) for at, size, write in call.ranges if write]
        self.m.announce(call.name, self.stream(call), reads, writes, call.cost)


# ------------------------------------------------------------------------ what it shows


def waits(calls):
    """Places of the calls that make a stream or the host wait."""
    kinds = ("stream_after", "event_wait", "stream_wait", "device_wait")
    return [i for i, c in enumerate(calls) if c.entry in kinds and c.status == 0]
