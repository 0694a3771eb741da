"""Counters of the rate limits, so that all processes and replicas count together; a list of devices reads one index."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hits",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_index("ix_profiles_device", "profiles", ["bundle", "fingerprint", "device", "version"])


def downgrade() -> None:
    op.drop_index("ix_profiles_device", "profiles")
    op.drop_table("hits")
