"""What a rush meets while Postgres is away, and how soon everything is confirmed when it is back."""
