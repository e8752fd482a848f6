-- The request of the comparison: what a chat SDK sends when its app opens.
-- Takes from the environment: BENCH_APP, the x-app-id header.

-- Devices that take turns, so that no proxy measures one hot cache line. Built once: while it runs,
-- wrk only picks the next text.
local DEVICES = 2048
local requests = {}
local turn = 0

function init(args)
  local app = os.getenv("BENCH_APP") or "acme"
  for device = 1, DEVICES do
    requests[device] = wrk.format("GET", "/c/v1/chat/settings", {
      ["Host"] = "acme.api.example.com",
      ["User-Agent"] = "okhttp/3.12.2",
      ["x-kustomer-client"] = "customer-android",
      ["x-kustomer-version"] = "release-v0.2.5",
      ["x-app-id"] = app,
      ["x-kustomer-tracking-token"] = string.format("5e9f%020x", device * 2654435761),
      ["accept-language"] = "en-US,en;q=0.9",
    })
  end
end

function request()
  turn = turn % DEVICES + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "failed_status": %d, "socket_errors": %d, "seconds": %.6f, "p50_us": %.1f, "p99_us": %.1f}\n',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end
