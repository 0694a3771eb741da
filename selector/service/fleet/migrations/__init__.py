"""The store's schema, revision by revision (Alembic). A released revision is never edited: a change is a new file.

Replicas of the version before go on running while the first of the new one migrates, so a revision only adds: a column that
is to go is first left unused for one release.
"""
