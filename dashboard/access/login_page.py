"""The page where people log in: HTML without scripts and without anything from elsewhere."""

from __future__ import annotations

from html import escape

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>SageSched: log in</title>
<style>
:root {{ color-scheme: light dark; --text: #0d151e; --ground: #ffffff; --line: #8a96a3; --act: #2563a8; --bad: #b3261e; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e3e8ee; --ground: #12171d; --line: #6b7885; --act: #2b74ba; --bad: #ff9d94; }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); margin: 12vh auto; max-width: 24rem; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }}
label {{ display: block; margin: 1rem 0 .3rem; font-weight: 600; }}
input {{ width: 100%; box-sizing: border-box; font: inherit; padding: .5rem .6rem; border: 1px solid var(--line); border-radius: 6px; background: transparent; color: inherit; }}
button {{ margin-top: 1.4rem; font: inherit; padding: .5rem 1.2rem; border: 0; border-radius: 6px; background: var(--act); color: #ffffff; cursor: pointer; }}
small {{ display: block; margin-top: .3rem; }}
.bad {{ color: var(--bad); }}
</style>
</head>
<body>
<main>
<h1>SageSched</h1>
<p>Log in with a token of the controller: <code>http.token</code> may look and switch the mode, <code>http.read_token</code> may look.</p>
{problem}<form method="post">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<label for="name">Your name (optional)</label>
<input id="name" name="name" autocomplete="name" maxlength="100">
<small>Recorded with what you switch.</small>
<button type="submit">Log in</button>
</form>
</main>
</body>
</html>
"""


def login_page(problem: str) -> str:
    """The page, with what went wrong the last time."""
    return _PAGE.format(problem=f'<p class="bad" role="alert">{escape(problem)}</p>\n' if problem else "")
