"""KServe v2, the Open Inference Protocol over HTTP; what each call and tensor means is in `docs/gateway.md`."""

from zoo.gateway.doors.kserve import health

ROUTES = (*health.ROUTES,)
