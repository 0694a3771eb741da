"""The tables of the store, as the newest migration leaves them (a test compares the two)."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa


class Moment(sa.TypeDecorator[datetime]):
    """A moment in UTC. SQLite keeps no time zone: what it hands back is given one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


NAME = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
"""Sorted by its characters' numbers in every database, as Python sorts, so that pages of a list fit together."""

metadata = sa.MetaData()

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),  # of the whole token; the token itself is nowhere
    sa.Column("scopes", sa.Text, nullable=False),  # separated by spaces
    sa.Column("bundle", sa.String(255)),  # only this one, where it is given; `*` stands for any characters
    sa.Column("device", sa.String(128)),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("expires_at", Moment),
    sa.Column("revoked_at", Moment),
)

profiles = sa.Table(
    "profiles",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("bundle", sa.String(255), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("device", NAME, nullable=False),
    sa.Column("model", NAME, nullable=False),  # see `device_profiles.models`
    sa.Column("version", sa.Integer, nullable=False),  # 1, 2, … of a bundle's device
    sa.Column("sha256", sa.String(64), nullable=False),  # of the document
    sa.Column("document", sa.Text, nullable=False),  # canonical JSON, byte for byte the same in every database
    sa.Column("received_at", Moment, nullable=False),
    sa.Column("token_id", sa.String(16), sa.ForeignKey("tokens.id")),
    sa.UniqueConstraint("bundle", "device", "version", name="uq_profiles_version"),
    sa.Index("ix_profiles_model", "bundle", "fingerprint", "model"),
    sa.Index("ix_profiles_device", "bundle", "fingerprint", "device", "version"),
)

trials = sa.Table(
    "trials",
    metadata,
    sa.Column("bundle", sa.String(255), primary_key=True),
    sa.Column("version", sa.String(12), primary_key=True),  # what it holds, see `selector.ship.state`
    sa.Column("device", NAME, primary_key=True),
    sa.Column("model", NAME, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # trying, accepted, taken back
    sa.Column("reason", sa.Text),
    sa.Column("figures", sa.Text, nullable=False),  # JSON
    sa.Column("told_at", Moment, nullable=False),
    sa.Column("token_id", sa.String(16), sa.ForeignKey("tokens.id")),
    sa.Index("ix_trials_model", "bundle", "version", "model", "state"),
)
"""What each device told last of a new version (`rings.py`)."""

hits = sa.Table(
    "hits",
    metadata,
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),  # seconds since 1970
)
"""Requests in the present window of a rate limit (`rates.py`)."""
