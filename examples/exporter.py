"""Exports the state and traffic of the fleet's tunnels to Prometheus; rekeying does not reset the counters.

python examples/exporter.py nats://127.0.0.1:4222 9200
curl http://127.0.0.1:9200/metrics
"""

import asyncio
import sys
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from vicibridge.client import Fleet, Watch
from vicibridge.contract.bucket_values import ConnValue


class Tunnels:
    """Reads the mirror at each scrape."""

    def __init__(self, watch: Watch[ConnValue]) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("tunnel_up", "1 while a CHILD_SA is up", labels=["node", "conn", "child"])
        traffic = CounterMetricFamily("tunnel_bytes", "Bytes", labels=["node", "conn", "child", "direction"])
        for value in list(self._watch.current.values()):
            node, conn = value["node"], value["conn"]
            for child, count in value["child_sas"].items():
                up.add_metric([node, conn, child], count > 0)
            for child, totals in value["totals"].items():
                traffic.add_metric([node, conn, child, "in"], totals["bytes_in"])
                traffic.add_metric([node, conn, child, "out"], totals["bytes_out"])
        yield up
        yield traffic


async def main(url: str, port: int) -> None:
    async with Fleet(url) as fleet, fleet.watch_conns() as watch:
        registry = CollectorRegistry()
        registry.register(Tunnels(watch))
        start_http_server(port, "127.0.0.1", registry)
        while True:  # watch.current is up to date anyway
            try:
                await anext(watch)
            except ValueError as error:  # the value of another program
                print(error, file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
