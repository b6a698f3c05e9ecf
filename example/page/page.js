import { Answers } from './answers.js'
import { Composer } from './composer.js'
import { $, tell } from './element.js'
import { gateway } from './gateway.js'
import { Log } from './log.js'
import { DeviceDetails } from './device-details.js'
import { DeviceList } from './device-list.js'
import { TabDevice } from './tab-device.js'

const FIRST_WAIT = 500
const LONGEST_WAIT = 10_000

const answers = new Answers()
const log = new Log()
const details = new DeviceDetails(openHere)
const composer = new Composer(async request => {
  await answers.send(request)
  details.look()
})
const roster = new DeviceList(id => {
  details.choose(id)
  composer.choose(id)
  log.choose(id)
})
/** The devices of this tab, by id. */
const own = new Map()

function openHere (id) {
  if (!own.has(id)) own.set(id, new TabDevice(id, () => forgetDevice(id)))
  own.get(id).focus()
  $('no-tab-devices').hidden = true
}

function forgetDevice (id) {
  own.delete(id)
  $('no-tab-devices').hidden = own.size > 0
  $('opener').elements.id.focus()
}

const randomId = () => `tab-${Math.random().toString(36).slice(2, 6)}`

$('host').textContent = location.host
$('open-first').addEventListener('click', () => openHere(randomId()))

$('opener').addEventListener('submit', event => {
  event.preventDefault()
  const { id } = event.target.elements
  const isId = /^[A-Za-z0-9._:@+=~-]*$/.test(id.value)
  tell($('opener-wrong'), isId ? '' : 'An id is made of letters, digits and . _ : @ + = ~ -')
  if (!isId) return
  openHere(id.value || randomId())
  id.value = ''
})

$('forget').addEventListener('click', () => {
  gateway.forget()
  location.reload()
})

function hear (event) {
  log.add(event)
  if (event.kind === 'connected') roster.arrived(event)
  else if (event.kind === 'disconnected') roster.left(event)
  else if (event.kind !== 'message') answers.became(event)
  if (event.deviceId === details.id) details.look()
}

function live (state, text) {
  $('live').dataset.state = state
  $('live').textContent = text
}

/** Follows the feed while the page is open. Events that arrived before the list are applied again after it. */
async function follow () {
  for (let tries = 0; ; tries++) {
    let early = []
    const opened = async () => {
      await roster.load()
      for (const event of early) hear(event)
      early = undefined
      tries = 0
      answers.check()
      details.look()
      live('on', 'Live')
      $('forget').hidden = gateway.token === undefined
      $('connect-line').textContent = `npx wscat -c "${new URL('ws?deviceId=abc123', document.baseURI).href.replace('http', 'ws')}"${gateway.token ? ' -H "authorization: Bearer $TOKEN"' : ''}`
    }
    try {
      for await (const event of gateway.events(opened)) {
        if (early) early.push(event)
        else hear(event)
      }
      live('off', 'The gateway ended the feed')
    } catch (error) {
      live('off', error.message)
    }
    await new Promise(resolve => setTimeout(resolve, Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** tries)))
  }
}

roster.choose(undefined)
void follow()
