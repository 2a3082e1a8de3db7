"""Scalars for TensorBoard, while runs go on; written by TensorBoard itself, without a framework."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from harness.records import Run, Show


@contextmanager
def tensorboard(folder: Path, run: Run) -> Iterator[Show]:
    """A place for a run's values, in a folder of its own below `folder`. Raises: OSError."""
    with closing(EventFileWriter(str(folder / run.record.stem))) as writer:

        def show(step: int, values: Mapping[str, float]) -> None:
            scalars = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
            # The one use of the time of day: TensorBoard's axis 'wall'. Nothing is decided by it.
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
            writer.add_event(event)
            writer.flush()

        yield show
