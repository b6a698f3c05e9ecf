import t, { type Test } from 'tap'
import { withBrowser, type OpenOptions } from './browser.ts'
import { answer, body, calling, card, choose, entries, live, openDevice, openPage, roster, search, sends, serve } from './console-page.ts'
import { connect, request, until } from './support.ts'

withBrowser(t, 'the console', async (t, browser) => {
  const app = await serve(t)
  const { url } = app
  const open = async (t: Test, options?: OpenOptions) => await openPage(t, browser, `${url}/console`, options)
  // a page takes a second to open, so tests with few side effects share one
  const page = await open(t)

  await t.test('explains what to do while no device is connected', async t => {
    await page.getByText('No device is connected.').waitFor()
    t.match(await page.locator('#connect-line').textContent(), `npx wscat -c "${url.replace('http', 'ws')}/ws?deviceId=abc123"`)
    await page.getByRole('button', { name: 'Open one in this tab' }).click()
    await page.locator('.card').getByText('connected').waitFor()
    await page.getByText('No device is connected.').waitFor({ state: 'hidden' })
  })

  await t.test('refuses invalid JSON before it is sent, and writes the curl line of a request', async t => {
    await body(page).fill("{it's")
    await page.getByRole('button', { name: 'Send to all' }).click()
    await page.getByRole('alert').getByText('This is not JSON').waitFor()
    t.equal(await page.locator('#answers li').count(), 0)
    await page.getByLabel('Format').selectOption('text')
    t.equal(await page.locator('#curl').textContent(), `curl -X POST '${url}/broadcast' -H 'content-type: text/plain' -d '{it'\\''s'`)
  })

  await t.test('shows a device that connects, its details, and that it disconnects', async t => {
    const page = await open(t)
    const device = await connect(url, 'outside')
    await roster(page, 'outside').and(page.locator('[data-state=on]')).waitFor()
    await choose(page, 'outside')
    await page.locator('#presence').getByText('connected').waitFor()
    await page.locator('#facts').getByText('127.0.0.1').waitFor()
    await page.locator('#facts').getByText('jsonrpc').waitFor()
    await device.ask('subscribe', { topics: ['floors/3/#'] })
    device.notify('message', { data: { celsius: 21 } })
    await entries(page, 'message').filter({ hasText: '{"celsius":21}' }).waitFor()
    await page.locator('#facts').getByText('floors/3/#').waitFor()
    device.socket.close(4000, 'enough')
    await roster(page, 'outside').and(page.locator('[data-state=off]')).waitFor()
    await entries(page, 'disconnected').filter({ hasText: '4000 enough' }).waitFor()
    await page.locator('#presence').getByText('away').waitFor()
    await page.locator('#facts').getByText('4000 enough').waitFor()
    t.equal(await entries(page, 'connected').filter({ hasText: 'outside' }).count(), 2, 'it came and went')
  })

  await t.test('opens devices in the tab, which receive messages, answer calls, and send messages', async t => {
    const page = await open(t)
    await openDevice(page, 'here-1')
    await openDevice(page, 'here-2')
    const here = card(page, 'here-1')

    await choose(page, 'here-1')
    await body(page).fill('{"open":"door"}')
    await page.getByLabel('Wait until acknowledged').check()
    await sends(page)
    await answer(page, '{"open":"door"}').filter({ hasText: '200' }).filter({ hasText: 'delivered' }).waitFor()
    await here.locator('.received').getByText('{"open":"door"}').waitFor()

    await page.getByLabel('Wait until acknowledged').uncheck()
    await page.getByLabel('If it is away').selectOption('60')
    await page.getByLabel('Format').selectOption('text')
    await body(page).fill('plain words')
    await page.keyboard.press('Control+Enter')
    await answer(page, 'plain words').filter({ hasText: 'queued → delivered' }).waitFor()
    await here.locator('.received').getByText('plain words').waitFor()

    await calling(page)
    await body(page).fill('{"hello":"device"}')
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await answer(page, 'echo').locator('pre').getByText('{"hello":"device"}').waitFor()

    await page.getByLabel('Method', { exact: true }).fill('ask')
    await body(page).fill('{"question":"Open the door?"}')
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await here.getByText('Open the door?').waitFor()
    await here.getByRole('button', { name: 'Yes' }).click()
    await answer(page, 'ask').getByText('{"yes":true}').waitFor()

    await here.getByLabel('Message to the server').fill('good morning')
    await page.keyboard.press('Enter')
    await here.locator('.received').getByText('good morning').waitFor()
    await entries(page, 'good morning').filter({ hasText: 'here-1' }).waitFor()

    await here.getByRole('button', { name: 'Close' }).click()
    await roster(page, 'here-1').and(page.locator('[data-state=off]')).waitFor()
    await roster(page, 'here-2').and(page.locator('[data-state=on]')).waitFor()
  })

  await t.test('keeps letters for a device that is away until it is opened', async t => {
    const page = await open(t, { expected: /404/ })
    await search(page).fill('later')
    await choose(page, 'later')
    await page.getByText('no letter waits for it').waitFor()
    await sends(page)
    await answer(page, 'DEVICE_OFFLINE').filter({ hasText: '404' }).waitFor()
    await page.getByLabel('If it is away').selectOption('3600')
    for (const message of ['{"n":1}', '{"n":2}']) {
      await body(page).fill(message)
      await sends(page)
      await answer(page, message).filter({ hasText: '202' }).getByText('queued', { exact: true }).waitFor()
    }
    await page.locator('#letters-list li').nth(1).getByRole('button', { name: 'Cancel' }).click()
    await answer(page, '{"n":2}').getByText('queued → cancelled').waitFor()
    await page.locator('#letters-list li').nth(1).waitFor({ state: 'hidden' })
    await page.locator('#recipient').getByRole('button', { name: 'Open in this tab' }).click()
    await card(page, 'later').locator('.received').getByText('{"n":1}').waitFor()
    await answer(page, '{"n":1}').getByText('queued → delivered').waitFor()
    await entries(page, 'delivered').filter({ hasText: 'later' }).waitFor()
    await page.locator('#letters').waitFor({ state: 'hidden' })
    t.equal(await card(page, 'later').locator('.received li').count(), 1)
  })

  await t.test('asks before it disconnects a device or cancels all its letters', async t => {
    const page = await open(t)
    const device = await connect(url, 'asked')
    await choose(page, 'asked')
    const dialog = page.getByRole('dialog', { name: 'Disconnect asked?' })
    await page.getByRole('button', { name: 'Disconnect' }).click()
    await dialog.getByRole('button', { name: 'Keep' }).click()
    t.match(await device.ask('ping'), { result: {} })
    await page.getByRole('button', { name: 'Disconnect' }).click()
    await page.keyboard.press('Escape')
    await dialog.waitFor({ state: 'hidden' })
    t.match(await device.ask('ping'), { result: {} })
    await page.getByRole('button', { name: 'Disconnect' }).click()
    await dialog.getByRole('button', { name: 'Disconnect' }).click()
    t.match(await device.closed, { code: 4511 })

    await page.locator('#presence').getByText('away').waitFor()
    await page.getByLabel('If it is away').selectOption('3600')
    for (const text of ['one', 'two']) {
      await body(page).fill(JSON.stringify(text))
      await sends(page)
      await answer(page, text).getByText('queued', { exact: true }).waitFor()
    }
    await page.locator('#letters-list li').nth(1).waitFor()
    await page.getByRole('button', { name: 'Cancel all' }).click()
    await page.getByRole('dialog').getByRole('button', { name: 'Cancel them' }).click()
    for (const text of ['one', 'two']) await answer(page, text).getByText('queued → cancelled').waitFor()
    await page.locator('#letters').waitFor({ state: 'hidden' })
  })

  await t.test('sends to all, or to those that listen to a topic', async t => {
    const page = await open(t)
    await openDevice(page, 'reader')
    await openDevice(page, 'other')
    await card(page, 'reader').getByLabel('Topic to listen to').fill('news/+')
    await page.keyboard.press('Enter')
    await card(page, 'reader').getByRole('button', { name: 'Leave news/+' }).waitFor()
    await page.getByLabel('Only to topic').fill('news/sport')
    await body(page).fill('{"goal":1}')
    await page.getByRole('button', { name: 'Send to all' }).click()
    await answer(page, '{"goal":1}').filter({ hasText: 'sent to 1 device' }).waitFor()
    await card(page, 'reader').locator('.received').filter({ hasText: 'news/sport' }).getByText('{"goal":1}').waitFor()
    await page.getByLabel('Only to topic').fill('')
    await body(page).fill('{"all":true}')
    await page.getByRole('button', { name: 'Send to all' }).click()
    for (const id of ['reader', 'other']) await card(page, id).locator('.received').getByText('{"all":true}').waitFor()
    t.equal(await card(page, 'other').locator('.received li').count(), 1)
  })

  await t.test('shows ids, messages and answers of devices as text', async t => {
    const attack = "<img src=x onerror=document.title='taken'>"
    const page = await open(t, { expected: /422/ })
    const device = await connect(url, '__proto__')
    device.handle('echo', () => { throw { code: 42, message: attack, data: { attack } } })
    await openDevice(page, 'victim')
    await card(page, 'victim').getByLabel('Topic to listen to').fill('#')
    await page.keyboard.press('Enter')
    await card(page, 'victim').getByRole('button', { name: 'Leave #' }).waitFor()
    device.notify('subscribe', { topics: [attack] })
    device.notify('message', { data: attack })
    device.notify('message', { data: 'x\n\nevent: gap\ndata: {"type":"gap","data":{}}\n\n' })
    device.notify('publish', { topic: attack, data: attack })
    await choose(page, '__proto__')
    await entries(page, attack).waitFor()
    await entries(page, 'event: gap').and(page.locator('[data-kind=message]')).waitFor()
    await card(page, 'victim').locator('.received').getByText(attack).first().waitFor()
    await page.locator('#facts').getByText(attack).waitFor()
    await calling(page)
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await answer(page, 'DEVICE_REFUSED').filter({ hasText: attack }).waitFor()
    device.socket.close(4000, attack)
    await entries(page, 'disconnected').filter({ hasText: attack }).waitFor()
    await page.locator('#facts').getByText(`4000 ${attack}`).waitFor()
    await request({ url }, 'POST', '/devices/victim/messages', attack)
    await card(page, 'victim').locator('.received').getByText(attack, { exact: true }).nth(2).waitFor()
    t.equal(await page.title(), 'Device console')
    t.equal(await page.locator('img').count(), 1, 'none but that of the heading')
  })

  await t.test('finds devices by a part of their id, by its beginning, and by a topic', async t => {
    const page = await open(t, { expected: /400/ })
    const devices = await Promise.all(['kiosk-1', 'kiosk-2', 'old-kiosk', 'KIOSK-3'].map(id => connect(url, id)))
    await devices[1]!.ask('subscribe', { topics: ['shops/+'] })
    const found = async () => (await page.locator('#roster li[data-id]').evaluateAll(rows => rows.map((row: any) => row.dataset.id))).toSorted()

    await search(page).fill('kiosk-')
    await page.locator('#count').getByText('3 found').waitFor()
    t.strictSame(await found(), ['KIOSK-3', 'kiosk-', 'kiosk-1', 'kiosk-2'], 'and a row for letters to the id itself')
    await page.getByLabel('Find devices by').selectOption('prefix')
    await page.locator('#count').getByText('2 found').waitFor()
    t.strictSame(await found(), ['kiosk-1', 'kiosk-2'])
    const late = await connect(url, 'kiosk-4')
    await page.locator('#count').getByText('3 found').waitFor()
    await page.getByLabel('Find devices by').selectOption('topic')
    await search(page).fill('shops/berlin')
    await page.locator('#count').getByText('1 found').waitFor()
    t.strictSame(await found(), ['kiosk-2'])
    await search(page).fill('shops/#')
    await page.locator('#filter-wrong').waitFor()
    await search(page).fill('nothing')
    await page.getByText('No device listens to this topic.').waitFor()
    await page.locator('#filter-wrong').waitFor({ state: 'hidden' })
    for (const device of [...devices, late]) await device.close()
  })

  await t.test('shows some of a thousand devices and the number of the others, and finds each', async t => {
    const page = await open(t)
    const devices = await Promise.all(Array.from({ length: 1_000 }, (_, n) => connect(url, `many-${n}`)))
    await page.locator('#roster').getByText('connected').filter({ hasText: /^1,\d\d\d/ }).waitFor()
    await page.getByText(/^and \d+ more; search to find them$/).waitFor()
    t.equal(await page.locator('#roster li[data-id]').count(), 200)
    t.ok(await page.locator('#entries li').count() <= 200)
    await search(page).fill('MANY-17')
    await page.locator('#count').getByText('11 found').waitFor()
    t.strictSame((await page.locator('#roster li[data-id]').evaluateAll(rows => rows.map((row: any) => row.dataset.id))).toSorted(),
      ['MANY-17', 'many-17', ...Array.from({ length: 10 }, (_, n) => `many-17${n}`)].toSorted())
    await Promise.all(devices.map(device => device.close()))
  })

  await t.test('fits into every width, also with long texts', async t => {
    const id = 'x'.repeat(128)
    await openDevice(page, id)
    await card(page, id).getByLabel('Message to the server').fill('y'.repeat(500))
    await page.keyboard.press('Enter')
    await entries(page, 'yyyy').waitFor()
    await choose(page, id)
    await page.locator('#facts').getByText('jsonrpc').waitFor()
    await calling(page)
    await body(page).fill(JSON.stringify({ long: 'z'.repeat(500) }))
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await answer(page, 'answered').waitFor()
    const wide = `[...document.querySelectorAll('section, section *:not(option, .hidden, .sent)')].filter(({ tagName, scrollWidth, clientWidth, offsetParent }) =>
      offsetParent && clientWidth > 0 && scrollWidth > clientWidth + 1 && !['INPUT', 'TEXTAREA'].includes(tagName)).map(({ outerHTML }) => outerHTML.slice(0, 80))`
    for (const width of [320, 360, 390, 800, 1280, 1920]) {
      await page.setViewportSize({ width, height: 800 })
      t.equal(await page.evaluate('document.documentElement.scrollWidth'), width)
      t.strictSame(await page.evaluate(wide), [], `${width} pixels`)
    }
  })

  await t.test('has a language, a title, one main heading, landmarks, and a name on every control', async t => {
    await openDevice(page, 'named')
    await choose(page, 'named')
    t.equal(await page.locator('html').getAttribute('lang'), 'en')
    t.equal(await page.title(), 'Device console')
    t.equal(await page.getByRole('heading', { level: 1 }).count(), 1)
    for (const role of ['banner', 'main'] as const) t.equal(await page.getByRole(role).count(), 1, role)
    for (const name of ['The last hour of this node', 'Devices', 'named', 'Devices of this tab', 'Log']) t.equal(await page.getByRole('region', { name, exact: true }).count(), 1, name)
    const session = await page.context().newCDPSession(page)
    const { nodes } = await session.send('Accessibility.getFullAXTree')
    const controls = nodes.filter(({ ignored, role }) => !ignored && ['button', 'textbox', 'searchbox', 'combobox', 'checkbox', 'radio', 'slider', 'spinbutton', 'link', 'log', 'region'].includes(role?.value))
    t.ok(controls.length > 20)
    t.strictSame(controls.filter(({ name }) => !name?.value).map(({ role, properties }) => ({ role: role?.value, properties })), [])
  })

  await t.test('can be used with the keyboard alone, and shows where the focus is', async t => {
    const page = await open(t)
    const devices = await Promise.all(['key-1', 'key-2', 'key-3'].map(id => connect(url, id)))
    await roster(page, 'key-3').waitFor()
    const focused = async () => await page.evaluate(`(() => {
      const { activeElement: at } = document
      const visible = [at, at.nextElementSibling, at.parentElement].some(one => one && getComputedStyle(one).outlineStyle !== 'none')
      return { id: at.id || at.name || at.type || (at === document.body ? 'none' : at.localName), text: at.textContent.trim().slice(0, 40), label: at.ariaLabel, visible }
    })()`) as { id: string, text: string, label: string | null, visible: boolean }
    const tabTo = async (matches: (at: Awaited<ReturnType<typeof focused>>) => boolean) => {
      for (let n = 0; n < 60; n++) {
        await page.keyboard.press('Tab')
        const at = await focused()
        if (at.id !== 'none') t.ok(at.visible, `the focus is visible at ${at.id} ${at.label ?? at.text}`)
        if (matches(at)) return n
      }
      throw new Error('The Tab key does not lead there')
    }
    t.equal(await tabTo(({ text }) => text === 'Skip to the selected device'), 0)
    await tabTo(({ id }) => id === 'filter')
    await page.keyboard.type('key-')
    await page.locator('#count').getByText('3 found').waitFor()
    t.equal(await tabTo(({ text }) => text.startsWith('All devices')), 0, 'the list is one stop')
    await page.keyboard.press('End')
    t.match(await focused(), { text: /^key-1/ })
    await page.keyboard.press('ArrowUp')
    await page.keyboard.press('Enter')
    await page.getByRole('heading', { name: 'key-2', level: 2 }).waitFor()
    await tabTo(({ id }) => id === 'body')
    await page.keyboard.press('Control+A')
    await page.keyboard.type('{"by":"keyboard"}')
    await page.keyboard.press('Control+Enter')
    t.match(await devices[1]!.message(), { params: { data: { by: 'keyboard' } } })
    // on through the rest of the page, and round to the beginning
    await tabTo(({ text }) => text === 'Skip to the selected device')
    await page.keyboard.press('Enter')
    t.match(await focused(), { id: 'recipient' })
    for (const device of devices) await device.close()
  })

  await t.test('shows on a phone one section after the other, and goes to the chosen device', async t => {
    const page = await open(t, { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true })
    const device = await connect(url, 'phone')
    await roster(page, 'phone').getByRole('button').tap()
    await page.getByRole('heading', { name: 'phone', level: 2 }).waitFor()
    const topOf = async (id: string) => await page.locator(id).evaluate((one: any) => one.getBoundingClientRect().top as number)
    await until(async () => await topOf('#recipient') < 120)
    await page.getByRole('link', { name: 'Log' }).tap()
    await until(async () => await topOf('#log') < 844)
    const small = 'button:not([hidden]), .top nav a, #opener input, select'
    const sizes = await page.locator(small).evaluateAll(all => all.filter((one: any) => one.offsetParent).map((one: any) => [one.textContent.trim().slice(0, 20), one.getBoundingClientRect().height] as const))
    t.strictSame(sizes.filter(([, height]) => height < 28), [], 'nothing is too small for a finger')
    await device.close()
  })

  await t.test('shows that the server has stopped, and reconnects to the next', async t => {
    await page.context().close() // the shared one would complain
    const alone = await open(t, { expected: /404|ERR_|WebSocket/ })
    await openDevice(alone, 'faithful')
    await choose(alone, 'faithful')
    await alone.locator('#facts').getByText('jsonrpc').waitFor()
    await app.close()
    await alone.locator('#live[data-state=off]').waitFor()
    await alone.locator('#details-wrong').getByText('The server does not answer').waitFor()
    await alone.locator('#facts').getByText('jsonrpc').waitFor()
    await entries(alone, 'faithful').filter({ hasText: '1012 retry=' }).waitFor()
    await alone.getByText('Reconnecting').waitFor()
    await serve(t, { port: Number(new URL(url).port) })
    await live(alone)
    await entries(alone, 'gap').getByText('Events may be missing here').waitFor()
    await roster(alone, 'faithful').and(alone.locator('[data-state=on]')).waitFor()
  })
})
