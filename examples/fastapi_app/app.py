"""A FastAPI application on SQLAlchemy: plans are flushed, invoices write their messages by the unit of work."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outboxd import outbox_context
from outboxd.contrib.sqlalchemy import Producing, produce


class Base(DeclarativeBase):
    """The application's tables."""


class Account(Base):
    """An account and its plan."""

    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    plan: Mapped[str]


class Invoice(Base):
    """An invoice; whoever adds one writes its message, too."""

    __tablename__ = "invoice"
    __outbox__ = Producing("INVOICE", shard="account_id", payload=lambda invoice: {"amount": invoice.amount})
    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int]
    amount: Mapped[int]


class Producers(Session):
    """Sessions that write messages."""


produce(Producers)
engine = create_async_engine(os.environ["APP_DATABASE_URL"])
sessions = async_sessionmaker(engine, sync_session_class=Producers)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Create the tables, and close the connections at the end."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def session_of_request() -> AsyncIterator[AsyncSession]:
    """Open a session for one request."""
    async with sessions() as session:
        yield session


class NewPlan(BaseModel):
    """The body of a change of plan."""

    plan: str


class NewInvoice(BaseModel):
    """The body of a new invoice."""

    amount: int


@app.put("/accounts/{account}/plan")
async def put_plan(
    account: int, body: NewPlan, session: Annotated[AsyncSession, Depends(session_of_request)]
) -> dict[str, bool]:
    """Change a plan; answers when others have heard of it."""
    async with outbox_context(session, flush=True) as outbox:
        await session.merge(Account(id=account, plan=body.plan))
        await outbox.save(
            "PLAN_UPDATE", shard_identifier=account, object_identifier=account, payload={"plan": body.plan}
        )
    return {"delivered": True}


@app.post("/accounts/{account}/invoices", status_code=201)
async def post_invoice(
    account: int, body: NewInvoice, session: Annotated[AsyncSession, Depends(session_of_request)]
) -> dict[str, int]:
    """Write an invoice; the daemon delivers its message."""
    invoice = Invoice(account_id=account, amount=body.amount)
    session.add(invoice)
    await session.commit()
    await session.refresh(invoice)
    return {"id": invoice.id}
