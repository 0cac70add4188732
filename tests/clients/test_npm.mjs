// The official JavaScript client (npm `ollama`), found in OLLMLX_NPM, against the server at OLLAMA_HOST.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import test from 'node:test'

const { Ollama } = createRequire(process.env.OLLMLX_NPM + '/package.json')('ollama')
const client = new Ollama({ host: process.env.OLLAMA_HOST })
const options = { temperature: 0, seed: 1, num_predict: 16 }
const messages = [{ role: 'user', content: 'Name three colours.' }]

test('list and show', async () => {
  const names = (await client.list()).models.map((model) => model.name)
  assert.ok(names.includes('smol:latest'))
  const shown = await client.show({ model: 'smol' })
  assert.equal(shown.details.family, 'llama')
  assert.ok(shown.capabilities.includes('completion'))
})

test('chat streamed is chat at once', async () => {
  const whole = await client.chat({ model: 'smol', messages, options })
  let text = ''
  let last
  for await (const part of await client.chat({ model: 'smol', messages, options, stream: true })) {
    text += part.message.content
    last = part
  }
  assert.equal(text, whole.message.content)
  assert.equal(last.done, true)
  assert.ok(last.eval_count > 0)
})

test('generate streamed is generate at once', async () => {
  const ask = { model: 'smol', prompt: 'Name three colours.', options }
  const whole = await client.generate(ask)
  let text = ''
  for await (const part of await client.generate({ ...ask, stream: true })) text += part.response
  assert.equal(text, whole.response)
})

test('an answer can be aborted', async () => {
  const mine = new Ollama({ host: process.env.OLLAMA_HOST })
  const stream = await mine.chat({ model: 'smol', messages, options: { ...options, num_predict: 1000 }, stream: true })
  await assert.rejects(async () => {
    for await (const part of stream) if (part) mine.abort()
  }, { name: 'AbortError' })
  assert.ok((await client.chat({ model: 'smol', messages, options })).message.content)
})

test('embeddings', async () => {
  const { embeddings } = await client.embed({ model: 'embed', input: ['a', 'b'] })
  assert.deepEqual(embeddings.map((vector) => vector.length), [384, 384])
})

test('ps, create, copy, delete', async () => {
  await client.generate({ model: 'smol', prompt: '', keep_alive: '5m' })
  assert.ok((await client.ps()).models.some((model) => model.name === 'smol:latest'))
  assert.equal((await client.create({ model: 'npm-made', from: 'smol', system: 'Be brief.' })).status, 'success')
  await client.copy({ source: 'npm-made', destination: 'npm-copy' })
  await client.delete({ model: 'npm-made' })
  await client.delete({ model: 'npm-copy' })
})

test('errors carry their status', async () => {
  await assert.rejects(client.chat({ model: 'ghost', messages }), (error) => error.status_code === 404 && /ghost/.test(error.message))
  await assert.rejects(client.chat({ model: 'smol', messages, think: true }), (error) => error.status_code === 400)
})
