"""What devices tell of new versions that they try."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "trials",
        sa.Column("bundle", sa.String(255), primary_key=True),
        sa.Column("version", sa.String(12), primary_key=True),
        sa.Column("device", NAME, primary_key=True),
        sa.Column("model", NAME, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("figures", sa.Text, nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("token_id", sa.String(16), sa.ForeignKey("tokens.id")),
    )
    op.create_index("ix_trials_model", "trials", ["bundle", "version", "model", "state"])


def downgrade() -> None:
    op.drop_table("trials")
