"""The product's services and stages: everything between Prefect, the trainers and the database.

Start with `stages.py` (what a cycle does), `config/` (what it is told) and `settings.py` (where it runs).
"""
