"""The model in service as a web page: one picture, a drift slider, the production log.
`python course.py demo --home DIR`.
"""
