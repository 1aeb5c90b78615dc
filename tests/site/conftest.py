from tests.gateway.serving import gateway_of

__all__ = ["gateway_of"]
