"""What differs from backend to backend: trainers, one a folder."""
