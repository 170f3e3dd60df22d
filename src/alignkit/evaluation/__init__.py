"""What tells whether training helped: results on disk, statistics over their items, and the report made of both."""
