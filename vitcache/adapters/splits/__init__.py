"""How the call of a stock `get_*_features` method is split into items. One module per form of a call."""
