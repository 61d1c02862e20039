"""Chancy: one queue, declared with the settings, and a worker."""

from __future__ import annotations

import logging

import worker
from chancy import Chancy, Queue, Worker


def make(settings: worker.Settings) -> Chancy:
    if settings.pop("quiet", False):  # its own logger writes two lines a job
        return Chancy("", log=logging.getLogger("quiet"))
    return Chancy("")


async def setup(settings: worker.Settings) -> None:
    settings.pop("send_outgoing_interval", None)
    async with make(settings) as chancy:
        await chancy.migrate()
        await chancy.declare(Queue(name="default", **settings), upsert=True)


async def work(settings: worker.Settings) -> None:
    async with make(settings) as chancy:
        running = Worker(chancy)
        # How often what is done is written: an attribute and no argument, says its reference (`Worker.queue_update`).
        running.send_outgoing_interval = settings.get("send_outgoing_interval", running.send_outgoing_interval)
        async with running:
            worker.ready()
            await running.wait_for_shutdown()


if __name__ == "__main__":  # its process executor imports this again
    worker.main(setup, work)
