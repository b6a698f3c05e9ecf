import { usageOf, type Command } from './command.ts'
import { exitCodes } from './exit-codes.ts'

/** The help of the program. */
export function programHelp (commands: readonly Command[]): string[] {
  return [
    'Usage: fastify-devices COMMAND [arguments] [flags]',
    '',
    'Runs a gateway for devices, and talks to a running one.',
    '',
    'Commands:',
    ...aligned(commands.map(({ name, parameters, summary }) => [[name, ...parameters].join(' '), summary])),
    '',
    'Try it in three terminals:',
    '  fastify-devices serve',
    '  fastify-devices connect abc123',
    '  fastify-devices send abc123 \'{"hello":"world"}\'',
    '',
    'fastify-devices COMMAND --help explains a command. fastify-devices --version prints the version.',
    '',
    'The gateway: --url and --token, or FASTIFY_DEVICES_URL and FASTIFY_DEVICES_TOKEN.',
    'Output: a table on a terminal, a line of JSON per record in a pipe or with --json.',
    `Exit codes: ${Object.entries(exitCodes).map(([name, { code }]) => `${code} ${name}`).join(', ')}.`
  ]
}

/** The help of one command. */
export function commandHelp (command: Command): string[] {
  const { summary, about, flags, examples } = command
  return [
    `Usage: ${usageOf(command)}`,
    '',
    `${summary}.`,
    ...(about.length > 0 ? ['', ...about] : []),
    '',
    'Flags:',
    ...aligned([...Object.entries(flags).map(([name, { value, about, env }]): [string, string] => [
      `--${name}${value ? ` ${value}` : ''}`, env ? `${about} (${env})` : about
    ]), ['--help', 'Print this']]),
    '',
    'Examples:',
    ...examples.flatMap(({ line, does }) => [`  # ${does}`, `  ${line}`])
  ]
}

function aligned (rows: ReadonlyArray<[string, string]>): string[] {
  const width = Math.max(...rows.map(([name]) => name.length))
  return rows.map(([name, about]) => `  ${name.padEnd(width)}  ${about}`)
}
