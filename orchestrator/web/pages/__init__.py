"""The pages that people see: server-rendered HTML, one style sheet, a little JavaScript, no build step.

Start with `rater/routes.py` and `desk/routes.py`; `shell.py` is what every page shares, `markdown.py` how untrusted
replies become safe HTML. Without JavaScript everything but the streaming works.
"""
