"""What breaks a whole service on purpose, and judges what became of it.

`deployment` starts real processes and real servers, each to be hurt on its own; `proxy` stands between
any two of them; `plan`, `nemesis` and `crowd` decide what happens; `history` and `final` write down what
was seen; `checker` judges it. Nothing in here needs pytest.
"""
