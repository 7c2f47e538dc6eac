"""The product's services and stages: everything between Prefect, the trainers and the database.

Start with `stages/` (what a cycle does), `config/` (what it is told) and `settings.py` (where it runs). A room knows
those below it alone; the floors stand in `tests/test_imports.py`.
"""
