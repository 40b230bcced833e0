"""Who sends: the kinds of `auth`, their credentials, and TLS.

`options.py` has the config, `admission.py` puts it together. One module is one kind: `token_guard.py`, `jwt_guard.py`,
`mtls_guard.py`, each a `Guard` (`guard.py`): `identify(request, device)` gives an `Identity` (`identity.py`), which says for
which devices it may write. Libraries beyond the plugin's own are imported only for the kind that needs them.
"""
