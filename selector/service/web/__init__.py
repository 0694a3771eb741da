"""What every path needs of HTTP: bodies and arguments and their schemas, problem details, the OpenAPI document, metrics, the
log of requests.
"""
