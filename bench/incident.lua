-- The loop: one version of one SDK inside one app, on many devices, each asking again and again.
-- Takes from the environment: LOOP_CLIENTS (devices), LOOP_DELAY_MS (pause per connection; 0: none).
-- incident.py describes the same source in LOOP; both must say the same.

local clients = tonumber(os.getenv("LOOP_CLIENTS") or "300")
local pause = tonumber(os.getenv("LOOP_DELAY_MS") or "0")
local paths = { "/c/v1/chat/settings", "/c/v1/chat/sessions", "/c/v1/chat/settings", "/kb/v1/articles" }
-- The same spread as the honest clients', so that none of these tells the loop from them.
local hosts = { "eu.api.example.com", "us.api.example.com", "ap.api.example.com" }
local agents = { "okhttp/3.12.2", "okhttp/4.9.0" }
local requests = {}
local turn = 0

function init(args)
  for client = 0, clients - 1 do
    for number, path in ipairs(paths) do
      requests[#requests + 1] = wrk.format("GET", path, {
        ["Host"] = hosts[client % #hosts + 1],
        ["User-Agent"] = agents[client % #agents + 1],
        ["x-kustomer-client"] = "chat-android",
        ["x-kustomer-version"] = "release-v3.2.1",
        ["x-app-id"] = "acme",
        ["x-kustomer-tracking-token"] = string.format("100b%020x", client * 2654435761 + 1),
        ["x-forwarded-for"] = string.format("198.%d.%d.%d", 18 + client % 2, client * 7 % 256, 128 + client % 127),
      })
    end
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

if pause > 0 then
  function delay()
    -- Jitter keeps the connections from beating in step.
    return math.random(math.floor(pause / 2), math.floor(pause * 3 / 2))
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "failed_status": %d, "socket_errors": %d, "seconds": %.6f, "p50_us": %.1f, "p99_us": %.1f}\n',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end
