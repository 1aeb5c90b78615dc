// A client written from docs/protocol.md alone: node client.mjs ENDPOINT PYTHON MODULES
// It exits with 0 when all that it asks is answered as the document says. The model is `toy` of the tests.
import assert from "node:assert/strict"
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { closeSync, openSync, readSync } from "node:fs"
import { createRequire } from "node:module"
import { createInterface } from "node:readline"

const [endpoint, python, modules] = process.argv.slice(2)
const require = createRequire(modules + "/")
const { Dealer } = require("zeromq")
const { Encoder, Decoder, ExtensionCodec } = require("@msgpack/msgpack")

// ---------------------------------------------------------------- messages

const extensions = new ExtensionCodec()
const encoder = new Encoder({ extensionCodec: extensions })
const decoder = new Decoder({ extensionCodec: extensions })
extensions.register({ type: 1, encode: () => null, decode: (data) => {
  const [dtype, shape, bytes] = new Decoder().decode(data)
  return { dtype, shape, bytes: Buffer.from(bytes) }
} })
extensions.register({ type: 2, encode: () => null, decode: (data) => {
  const [offset, dtype, shape] = new Decoder().decode(data)
  return { offset, dtype, shape }
} })
const pack = (...fields) => Buffer.concat([Buffer.from([1]), encoder.encode(fields)])
const unpack = (header) => {
  assert.equal(header[0], 1)
  return decoder.decode(header.subarray(1))
}
const HELLO = 1, INFER = 2, LOAD = 3, RELEASE = 4, QUERY = 8, CANCEL = 9, PING = 10, BYE = 11 // to the broker
const WELCOME = 1, RESULT = 2, ERROR = 3, VALUE = 4 // from it
const ATTACH = 1, ARENA = 2, ACCEPTED = 3, GONE = 5, RELEASED = 6, SETTLED = 7 // on the lifeline

class Client {
  constructor() {
    this.key = randomBytes(4).toString("hex") // 8 ASCII characters: zeromq.js takes routing ids as text
    this.socket = new Dealer({ routingId: this.key + "-0", linger: 1000, receiveTimeout: 20000 })
    this.rid = 0
  }

  async open() {
    this.socket.connect(endpoint)
    await this.socket.send(pack(HELLO, Buffer.from(this.key), process.pid, "node"))
    const [tag, handoff, arenaLimit, boot, inlineLimit] = unpack((await this.socket.receive())[0])
    assert.equal(tag, WELCOME)
    assert.ok(arenaLimit > 0 && boot && inlineLimit > 0)
    return handoff
  }

  async hear() {
    const [header, body] = await this.socket.receive()
    return [unpack(header), body && decoder.decode(body)]
  }

  async ask(tag, fields, ...rest) {
    const rid = ++this.rid
    await this.socket.send([pack(tag, rid, ...fields), ...rest])
    const [answer, body] = await this.hear()
    assert.equal(answer[1], rid)
    return { rid, answer, body }
  }

  infer(frame, options = {}, { buffers = [], arenas = [], boxes = null, timeout = 20000, model = "toy" } = {}) {
    return this.ask(INFER, [model, timeout, 2, arenas], encoder.encode([[frame], boxes, options]), ...buffers)
  }

  async bye() {
    await this.socket.send(pack(BYE))
    this.socket.close()
  }
}

const pixels = Buffer.alloc(8 * 8 * 3, 7)
const inline = [-1, 0, [8, 8, 3], "|u1", "rgb"]
const result = ({ answer, body }) => {
  assert.equal(answer[0], RESULT, JSON.stringify(answer))
  return body
}
const refused = ({ answer }, code, retryable) => {
  assert.deepEqual([answer[0], answer[2], answer[4]], [ERROR, code, retryable], JSON.stringify(answer))
  assert.ok(answer[3].length > 0)
  return answer
}

// ---------------------------------------------------------------- without shared memory

async function withoutLifeline() {
  const zoo = new Client()
  await zoo.open()
  const [[first], many] = result(await zoo.infer(inline, {}, { buffers: [pixels] }))
  assert.deepEqual([first.first, many ?? false], [[7, 7, 7], false])
  const [each, several] = result(await zoo.infer(inline, {}, { buffers: [pixels], boxes: [[0, 0, 4, 4], [2, 2, 8, 8]] }))
  assert.deepEqual([each.length, several], [2, true])
  await zoo.socket.send(pack(PING))

  // a lease
  const { answer: leased } = await zoo.ask(LOAD, ["toy", 20000, true])
  assert.equal(leased[0], VALUE)
  const leases = async () => (await zoo.ask(QUERY, ["status"])).answer[2].leases
  assert.equal(await leases(), 1)
  refused(await zoo.ask(5, ["toy", 1000]), "model_in_use", false)
  assert.equal((await zoo.ask(RELEASE, [leased[2]])).answer[0], VALUE)
  assert.equal(await leases(), 0)

  // errors
  refused(await zoo.infer(inline, {}, { buffers: [pixels], model: "no-such-model" }), "model_not_found", false)
  refused(await zoo.infer(inline, { do: "raise" }, { buffers: [pixels] }), "inference_failed", false)
  refused(await zoo.infer(inline, {}, { buffers: [pixels.subarray(1)] }), "invalid_input", false)
  refused(await zoo.infer(inline, { do: "sleep", seconds: 1 }, { buffers: [pixels], timeout: 50 }), "deadline_exceeded", true)
  assert.match(refused(await zoo.ask(LOAD, [7, 1000]), "invalid_input", false)[3], /^model: /)
  const withdrawn = zoo.infer(inline, { do: "sleep", seconds: 1 }, { buffers: [pixels] })
  await zoo.socket.send(pack(CANCEL, zoo.rid))
  refused(await withdrawn, "cancelled", false)
  await zoo.socket.send(Buffer.from([2, 0x90])) // of another version
  assert.deepEqual((await zoo.hear())[0].slice(0, 3), [ERROR, 0, "protocol_mismatch"])
  await zoo.bye()

  const stranger = new Client()
  stranger.socket.connect(endpoint)
  refused(await stranger.ask(QUERY, ["status"]), "broker_unreachable", true)
  stranger.socket.close()
}

// ---------------------------------------------------------------- with shared memory

class Lifeline {
  constructor() {
    this.helper = spawn(python, [new URL("descriptors.py", import.meta.url).pathname], { stdio: ["pipe", "pipe", "inherit"] })
    this.answers = createInterface({ input: this.helper.stdout })[Symbol.asyncIterator]()
  }

  async do(what, more = {}) {
    this.helper.stdin.write(JSON.stringify({ do: what, ...more }) + "\n")
    const { value, done } = await this.answers.next()
    assert.ok(!done, "the helper ended")
    return JSON.parse(value)
  }

  send(header, withMemory = false) {
    return this.do("send", { data: header.toString("base64"), with: withMemory })
  }

  async receive() {
    const { data, path } = await this.do("receive")
    return { packet: unpack(Buffer.from(data, "base64")), path }
  }
}

async function withLifeline() {
  const zoo = new Client()
  const handoff = await zoo.open()
  assert.ok(handoff)
  const line = new Lifeline()
  await line.do("connect", { path: handoff })
  await line.send(pack(ATTACH, "client", Buffer.from(zoo.key)))
  assert.deepEqual((await line.receive()).packet, [ACCEPTED, 0])

  await line.do("share", { size: 1 << 20, seals: 0x17 })
  await line.send(pack(ARENA, 0), true)
  const [tag, arena] = (await line.receive()).packet
  assert.equal(tag, ACCEPTED)
  await line.do("write", { offset: 4096, data: Buffer.alloc(192, 9).toString("base64") })
  const frame = [arena, 4096, [8, 8, 3], "|u1", "rgb"]
  assert.deepEqual(result(await zoo.infer(frame, {}, { arenas: [arena] }))[0][0].first, [9, 9, 9])

  // a large result lies in the worker's arena
  const large = await zoo.infer(frame, { do: "large" }, { arenas: [arena] })
  const [[answer]] = result(large)
  const theirs = large.answer[2]
  const { packet, path } = await line.receive()
  assert.deepEqual(packet, [ARENA, theirs])
  const slot = Object.values(answer).find((value) => value && value.offset !== undefined)
  const file = openSync(path, "r")
  const size = slot.shape.reduce((a, b) => a * b, 1) * Number(slot.dtype.slice(2))
  const bytes = Buffer.alloc(size)
  assert.equal(readSync(file, bytes, 0, size, slot.offset), size)
  assert.ok(bytes.some((byte) => byte !== 0))
  closeSync(file)
  await line.send(pack(RELEASED, theirs, slot.offset))

  // a frame that is still read when its request is answered
  const late = await zoo.infer(frame, { do: "sleep", seconds: 0.5 }, { arenas: [arena], timeout: 50 })
  assert.equal(refused(late, "deadline_exceeded", true)[6], true)
  let settled
  do settled = (await line.receive()).packet
  while (settled[0] === GONE)
  assert.deepEqual(settled, [SETTLED, late.rid])

  line.helper.stdin.end() // the lifeline ends, and with it the session
  await new Promise((done) => line.helper.on("exit", done))
  zoo.socket.close()
}

await withoutLifeline()
await withLifeline()
console.log("all was answered as docs/protocol.md says")
process.exit(0)
