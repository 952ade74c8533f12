"""Messages of two camera topics, as read from a rosbag: paired by time, fused, and written as a video.

    python -m examples.bag RECORDING -o fused.mkv

RECORDING is a folder of ``refusion-edge stream --record``, whose frames are in the order of their arrival. For a ROS bag,
replace ``messages``; with the package rosbags, for example:

    with AnyReader([path]) as reader:
        for connection, time_ns, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            yield Message(connection.topic, stamp_ns(message.header), message_to_cvimage(message))
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import refusion_edge as rf
from refusion_edge.arrays import Array
from refusion_edge.fuser import Fuser
from refusion_edge.stream.frames import Frame, FusedFrame, Side
from refusion_edge.stream.outputs.recording import read_recording
from refusion_edge.stream.pairing.pairer import Pairer
from refusion_edge.stream.processing.processor import Processor

TOPICS: dict[str, Side] = {"/thermal/image_raw": "ir", "/camera/image_raw": "vis"}


@dataclass(frozen=True, slots=True)
class Message:
    """An image message.

    Attributes:
        topic: Name of its topic.
        stamp_ns: Capture time, from its header.
        image: (H, W), or (H, W, 3) BGR.
    """

    topic: str
    stamp_ns: int
    image: Array


def messages(recording: Path) -> Iterator[Message]:
    """The frames of a recording as messages, in the order of their arrival."""
    topics = {side: topic for topic, side in TOPICS.items()}
    bag = read_recording(recording)
    for number in range(len(bag.rows)):
        frame = bag.read(number)
        yield Message(topics[frame.side], frame.time_ns, frame.image)


def fused(arriving: Iterable[Message], fuser: Fuser) -> Iterator[FusedFrame]:
    """Fuse messages as they arrive; those of other topics are passed over."""
    pairer, processor = Pairer(), Processor(fuser.backend)
    counts = dict.fromkeys(TOPICS.values(), 0)
    for message in arriving:
        side = TOPICS.get(message.topic)
        if side is None:
            continue
        time_ns = message.stamp_ns
        frame = Frame(side, message.image, counts[side], time_ns, arrived_ns=time_ns, unchanged_since_ns=time_ns)
        counts[side] += 1
        for pair in pairer.push(frame).pairs:
            yield processor.process(pair)
    for pair in pairer.flush().pairs:
        yield processor.process(pair)


def main() -> int:
    """Fuse a recording message by message."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recording", type=Path, help="folder of 'refusion-edge stream --record'")
    parser.add_argument("-o", "--output", required=True, metavar="URI", help="output of 'refusion-edge stream'")
    options = parser.parse_args()
    count = 0
    with rf.load("ir_vis", network="fast") as fuser, rf.open_sink(options.output) as sink:
        for frame in fused(messages(options.recording), fuser):
            sink.write(frame)
            count += 1
    print(f"wrote {count} fused frames to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
