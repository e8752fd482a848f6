-- Sends ready-made requests in turn, so that wrk does nothing but pick the next text.
-- Takes from the environment:
--   BENCH_REQUESTS   a file of requests without bodies, one after the other
--   BENCH_DELAY_MS   the mean pause of each connection between requests; absent or 0: none

local requests = {}
local turn = 0
local pause = tonumber(os.getenv("BENCH_DELAY_MS") or "0")

function init(args)
  local file = assert(io.open(os.getenv("BENCH_REQUESTS"), "rb"))
  for text in file:read("*a"):gmatch("(.-\r\n\r\n)") do
    requests[#requests + 1] = text
  end
  file:close()
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

if pause > 0 then
  function delay()
    -- Jitter keeps the connections from beating in step.
    return math.random(math.floor(pause / 2), math.ceil(pause * 3 / 2))
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "failed_status": %d, "socket_errors": %d, "seconds": %.6f, "p50_us": %.1f, "p99_us": %.1f}\n',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end
