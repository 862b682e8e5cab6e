"""The model in service as a web page: one picture, a drift slider, the production log.
`python -m demo --home DIR`.
"""
