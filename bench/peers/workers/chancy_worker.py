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
    async with make(settings) as chancy, Worker(chancy) as running:
        if "send_outgoing_interval" in settings:
            running.send_outgoing_interval = settings["send_outgoing_interval"]
        worker.ready()
        await running.wait_for_shutdown()


if __name__ == "__main__":  # its process executor imports this again
    worker.main(setup, work)
